"""Drives tidevm by firecracker-python: starts it as `MicroVM.create` does, and makes each call that both know.

Arguments: the program, and a folder for its files. What is not as it should be is an AssertionError.

`MicroVM` itself always configures a drive and a network interface, which tidevm does not have.
"""

import os
import sys
import time

from firecracker.api import Api, Resource
from firecracker.exceptions import APIError
from firecracker.process import ProcessManager
from firecracker.vmm import VMMManager

PATIENCE = 120
ID = "python1"


def until(what, condition):
    """Waits until the condition holds."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < PATIENCE, f"{what}: not within {PATIENCE} s"
        time.sleep(0.02)


def refused(call, text, **fields):
    """Asserts that a call is refused with this text."""
    try:
        call(**fields)
    except APIError as error:
        assert text in str(error), error
    else:
        raise AssertionError(f"not refused: {text}")


def main(program, folder):
    process, vmm = ProcessManager(), VMMManager()
    for manager in (process, vmm):
        manager._config.binary_path = program
        manager._config.data_path = folder
    home = f"{folder}/{ID}"
    os.makedirs(f"{home}/logs")
    log = f"{home}/logs/{ID}.log"
    process.start(ID, ["--api-sock", f"{home}/firecracker.socket", "--id", ID, "--log-path", log])
    assert process.is_running(ID)
    api = vmm.get_api(ID)
    assert isinstance(api, Api)
    memory = Resource(api, "/hotplug/memory")
    try:
        configure(api, vmm, memory)
        api.actions.put(action_type="InstanceStart")
        drive(api, vmm, memory)
        with open(log) as file:
            assert "PUT /machine-config: cpu_template field is deprecated." in file.read()
    finally:
        assert process.stop(ID)
    assert not os.path.exists(f"{home}/firecracker.socket")


def configure(api, vmm, memory):
    """The calls before the start."""
    assert vmm.get_vmm_state(ID) == "Not started"
    refused(api.actions.put, "Cannot start microvm without kernel configuration.", action_type="InstanceStart")
    refused(api.boot.put, "The kernel file cannot be opened: No such file", kernel_image_path="foo.bar")
    api.boot.put(kernel_image_path="builtin", boot_args=None)
    refused(api.machine_config.put, "missing field `vcpu_count`", mem_size_mib=128)
    answer = api.machine_config.put(vcpu_count=1, mem_size_mib=128, cpu_template="None")
    assert answer.headers["deprecation"] == "true"
    api.machine_config.patch(vcpu_count=2)
    assert api.machine_config.get().json()["vcpu_count"] == 2
    memory.put(total_size_mib=1024)
    refused(memory.patch, "not supported before starting the microVM", requested_size_mib=128)
    refused(api.vm.patch, "not supported before starting the microVM", state="Paused")
    refused(api.drive.put, "tidevm does not have drives", drive_id="rootfs", path_on_host="a")
    api.logger.put(level="Warning", show_level=True)


def drive(api, vmm, memory):
    """The calls after the start."""
    assert vmm.get_vmm_state(ID) == "Running"
    assert api.describe.get().json()["id"] == ID
    assert api.version.get().json()["firecracker_version"] == "1.14.0"
    config = vmm.get_vmm_config(ID)
    assert config["machine-config"]["vcpu_count"] == 2, config
    assert config["memory-hotplug"]["total_size_mib"] == 1024, config
    refused(api.boot.put, "not supported after starting the microVM", kernel_image_path="builtin")
    until("the driver", lambda: memory.get().json()["driver"])
    memory.patch(requested_size_mib=256)
    until("256 MiB", lambda: memory.get().json()["plugged_size_mib"] == 256)
    vmm.update_vmm_state(ID, "Paused")
    assert vmm.get_vmm_state(ID) == "Paused"
    vmm.update_vmm_state(ID, "Resumed")
    assert vmm.get_vmm_state(ID) == "Running"
    refused(api.create_snapshot.put, "not supported", snapshot_path="a", mem_file_path="b")
    refused(api.load_snapshot.put, "not supported", snapshot_path="a", mem_file_path="b")
    memory.patch(requested_size_mib=0)
    until("0 MiB", lambda: memory.get().json()["plugged_size_mib"] == 0)


main(*sys.argv[1:])
print("drove a machine")
