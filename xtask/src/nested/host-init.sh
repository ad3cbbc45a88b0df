#!/bin/busybox sh
# First process of the nested host. The words between @ are replaced when the file system is packed.
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
@LOAD@
@COLOR@
export TIDEVM_LINUX_KERNEL=/linux/vmlinuz TIDEVM_LINUX_ELF=/linux/vmlinux TIDEVM_LINUX_INITRD=/linux/initrd
stty raw -echo < /dev/ttyS1
@COMMAND@ < /dev/null > /dev/ttyS1 2>&1
echo $? > /dev/ttyS2
poweroff -f
