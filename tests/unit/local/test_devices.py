import os

import pytest

from local.devices import Device, find_devices, select_devices, share_cores, visible_gpus

TWO_GPUS = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-11111111-aaaa-bbbb-cccc-000000000000)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-22222222-aaaa-bbbb-cccc-000000000000)
"""
SLICED = """\
GPU 0: NVIDIA A100 (UUID: GPU-11111111-aaaa-bbbb-cccc-000000000000)
  MIG 3g.20gb     Device  0: (UUID: MIG-33333333-aaaa-bbbb-cccc-000000000000)
  MIG 3g.20gb     Device  1: (UUID: MIG-44444444-aaaa-bbbb-cccc-000000000000)
"""


@pytest.mark.parametrize(
    ("limit", "gpus"),
    [
        (None, ["0", "1"]),
        ("", []),
        ("1", ["1"]),
        ("1,0", ["1", "0"]),
        ("GPU-22222222", ["GPU-22222222"]),
        ("0,7,1", ["0"]),
        ("-1", []),
    ],
)
def test_gpus_are_those_that_cuda_would_show(limit: str | None, gpus: list[str]) -> None:
    assert visible_gpus(TWO_GPUS, limit) == gpus


def test_sliced_gpu_is_listed_by_its_slices() -> None:
    names = ["MIG-33333333-aaaa-bbbb-cccc-000000000000", "MIG-44444444-aaaa-bbbb-cccc-000000000000"]
    assert visible_gpus(SLICED, None) == names


def test_machine_without_a_visible_gpu_has_two_shares_of_its_processor() -> None:
    devices = find_devices({"CUDA_VISIBLE_DEVICES": ""}, frozenset(range(4)))
    assert [device.name for device in devices] == ["cpu:0", "cpu:1"]
    assert [device.cores for device in devices] == [frozenset({0, 1}), frozenset({2, 3})]
    assert devices[0].environment["OMP_NUM_THREADS"] == "2"
    assert devices[0].environment["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize("count", [1, 2, 3, 5, 64])
def test_shares_cover_every_core_once_and_one_core_is_shared(count: int) -> None:
    devices = share_cores(("cpu:0", "cpu:1"), frozenset(range(count)))
    shares = [device.cores or frozenset() for device in devices]
    assert frozenset().union(*shares) == frozenset(range(count))
    assert all(device.num_threads == len(device.cores or ()) >= 1 for device in devices)
    assert count == 1 or not shares[0] & shares[1]


def test_gpu_worker_sees_its_own_gpu_alone() -> None:
    device = Device("cuda:1", visible="5")
    assert device.environment["CUDA_VISIBLE_DEVICES"] == "5"


def test_auto_means_every_device_and_a_missing_gpu_means_none() -> None:
    devices = share_cores(("cpu:0", "cpu:1"), frozenset(os.sched_getaffinity(0)))
    assert select_devices("auto", devices) == devices
    assert select_devices("cpu:1", devices) == devices[1:]
    assert select_devices("cuda:0", devices) == ()
