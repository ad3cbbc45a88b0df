#!/bin/busybox sh
# First process of the nested host. The words between @ are filled in when it is packed.
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
@LOAD@
@COLOR@
export TIDEVM_LINUX_KERNEL=/linux/vmlinuz TIDEVM_LINUX_ELF=/linux/vmlinux TIDEVM_LINUX_INITRD=/linux/initrd
# QEMU's emulator now and then loses an interrupt that comes while a CPU enters or leaves a guest, and with
# a timer's all that waits for time on that CPU. The next interrupt of any kind makes up for it, so each
# CPU has the other one do something a few times a second.
nudge() { while :; do taskset $1 sleep 0.2; taskset $2 true; done; }
nudge 1 2 &
nudge 2 1 &
stty raw -echo < /dev/ttyS1
@COMMAND@ < /dev/null > /dev/ttyS1 2>&1
echo $? > /dev/ttyS2
poweroff -f
