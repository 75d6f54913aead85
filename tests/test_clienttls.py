"""Which certificates do our clients accept?"""

from __future__ import annotations

import ssl

from claimscope.clienttls import client_context


def test_names_and_chains_are_checked_but_no_extension_is_demanded() -> None:
    context = client_context()
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
