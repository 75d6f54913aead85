"""Which GPUs does the kernel see on the bus, and who drives them?"""

from __future__ import annotations

from pathlib import Path

from claimscope.health.pci import gpus_on_bus


def _device(root: Path, address: str, vendor: str, kind: str, driver: str = "") -> None:
    device = root / "devices" / address
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{kind}\n")
    if driver:
        (device / "driver").symlink_to(root / "drivers" / driver)


def test_gpus_of_nvidia_with_their_drivers(tmp_path: Path) -> None:
    _device(tmp_path, "0000:17:00.0", "0x10de", "0x030200", "nvidia")
    _device(tmp_path, "0000:18:00.0", "0x10de", "0x030000", "vfio-pci")
    _device(tmp_path, "0000:19:00.0", "0x10de", "0x030200")
    _device(tmp_path, "0000:19:00.1", "0x10de", "0x040300", "snd_hda_intel")  # its sound
    _device(tmp_path, "0000:05:00.0", "0x10de", "0x068000", "nvidia-nvswitch")
    _device(tmp_path, "0000:02:00.0", "0x1a03", "0x030000", "ast")
    assert gpus_on_bus(tmp_path / "devices") == {
        "0000:17:00.0": "nvidia", "0000:18:00.0": "vfio-pci", "0000:19:00.0": "",
    }  # fmt: skip


def test_bus_that_cannot_be_read_is_not_an_empty_one(tmp_path: Path) -> None:
    assert gpus_on_bus(tmp_path / "nothing") is None
    (tmp_path / "devices").mkdir()
    assert gpus_on_bus(tmp_path / "devices") == {}
