#!/bin/busybox sh
# First process of a stock Linux guest that takes commands on its console, one a line, as tidevm's own
# guest does. It prints `ready`. It answers each command with any number of lines, and a last line `ok` or
# `failed: REASON`. It does not echo. The words between @ are replaced when the file system is packed.
#   zoneinfo | meminfo
#   hog SIZE [movable] [scattered] [full] as NAME    a file in memory; Linux decides where its pages lie
#   verify NAME | release NAME | poweroff
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
echo online_movable > /sys/devices/system/memory/auto_online_blocks
@LOAD@
exec < /dev/ttyS0 > /dev/ttyS0 2>&1
stty -echo

mib() {
    case $1 in
        *G | *GiB) echo $((${1%%G*} * 1024)) ;;
        *M | *MiB) echo "${1%%M*}" ;;
        *) echo $(($1 >> 20)) ;;
    esac
}

hog() {
    # The limit is a part of the present memory.
    mount -o remount,size=90% /tmp
    if ! dd if=/dev/urandom of="/tmp/$2" bs=1M count="$(mib "$1")" 2> /dev/null; then
        rm "/tmp/$2"
        reason="no room for $1"
    else
        md5sum < "/tmp/$2" > "/tmp/$2.sum"
    fi
}

verify() {
    [ "$(md5sum < "/tmp/$1")" = "$(cat "/tmp/$1.sum")" ] || reason="$1 is not what it was"
}

echo ready
while read -r command first words; do
    reason=
    case $command in
        zoneinfo | meminfo) cat "/proc/$command" ;;
        hog) hog "$first" "${words##* }" ;;
        verify) verify "$first" ;;
        release) rm "/tmp/$first" "/tmp/$first.sum" || reason="there is no $first" ;;
        poweroff) poweroff -f ;;
        *) reason="there is no command $command" ;;
    esac
    if [ -z "$reason" ]; then echo ok; else echo "failed: $reason"; fi
done
