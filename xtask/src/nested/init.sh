#!/bin/busybox sh
# First and only process of the nested host. The words between @ are filled in when it is packed.
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
@LOAD@
@COLOR@
stty raw -echo < /dev/ttyS1
@COMMAND@ < /dev/null > /dev/ttyS1 2>&1
echo $? > /dev/ttyS2
poweroff -f
