#!/bin/busybox sh
# First process of a stock Linux guest. Words of the kernel's command line choose what it does:
#   policy=P   how new memory is onlined (memory_hotplug.online_policy and auto_online_blocks)
#   data=MIB   a file of MIB MiB in memory, made when there is memory for it and checked in every round
#   disk=check  the first disk is mounted, written, mounted again and read; the second one is read
#   disk=keep   the first disk is mounted, and gets one more line in a file
#   driver=none  the virtio-mem driver is not loaded
#   at=MIB:ACTION  an action (see `act`) when the memory has grown by MIB MiB; in the given order, one per round
# Every round prints one line with the kernel's view of its memory.
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs -o size=90% tmp /tmp
policy=online_movable
data=0
disk=none
driver=virtio_mem
plan=
for word in $(cat /proc/cmdline); do
    case $word in
        policy=*) policy=${word#policy=} ;;
        data=*) data=${word#data=} ;;
        disk=*) disk=${word#disk=} ;;
        driver=*) driver=${word#driver=} ;;
        at=*) plan="$plan ${word#at=}" ;;
    esac
done
if [ "$policy" = auto-movable ]; then
    echo auto-movable > /sys/module/memory_hotplug/parameters/online_policy
    policy=online
fi
echo $policy > /sys/devices/system/memory/auto_online_blocks
total() { awk '/^MemTotal/ { print $2 }' /proc/meminfo; }
start=$(total)
load() {
    @LOAD@
}
[ $driver = none ] || load
act() {
    bus=/sys/bus/virtio/drivers/virtio_mem
    case $1 in
        wait) sleep 3 ;;
        unbind)
            device=$(basename $bus/virtio*)
            echo $device > $bus/unbind
            ;;
        unbind_early) # at the first memory that comes, without waiting for the next round
            echo "the guest looks out for memory"
            until read -r _ now _ < /proc/meminfo && [ "$now" -gt "$start" ]; do :; done
            act unbind
            ;;
        bind) echo $device > $bus/bind || echo "guest cannot bind" ;;
        online)
            for block in $(grep -l offline /sys/devices/system/memory/memory*/state); do
                echo online_movable > $block
            done
            ;;
        fill-*) # files of 16 MiB come, two a second
            mount -o remount,size=1g /tmp
            for number in $(seq ${1#fill-}); do
                dd if=/dev/urandom of=/tmp/fill.$number bs=1M count=16 2> /dev/null
                sleep 0.5
            done
            echo "the guest has filled its memory"
            ;;
        drop) # the file goes, and its memory is free
            rm -f /tmp/data /tmp/fill.*
            data=0 state=none
            echo "the guest has dropped its data"
            ;;
        reboot) reboot -f ;;
        poweroff) poweroff -f ;;
    esac
}
check_disks() {
    for name in vda vdb; do
        block=/sys/block/$name
        size=$(cat $block/queue/logical_block_size)
        echo "disk $name: $(cat $block/size) sectors of $size bytes, read-only $(cat $block/ro), $(cat $block/serial)"
    done
    mount -t ext2 /dev/vda /disk && echo "disk vda is mounted"
    for line in $(seq 64); do
        echo "written by the guest" > /disk/$line
    done
    dd if=/dev/urandom of=/disk/data bs=64k count=16 conv=fsync 2> /dev/null
    sum=$(md5sum < /disk/data)
    sync
    umount /disk
    echo 3 > /proc/sys/vm/drop_caches
    mount -t ext2 /dev/vda /disk
    if [ "$(md5sum < /disk/data)" = "$sum" ] && [ "$(cat /disk/64)" = "written by the guest" ]; then
        echo "disk vda has what was written"
    fi
    umount /disk
    echo "disk vdb: $(head -c 15 /dev/vdb)"
    # A disk that is read-only is none to write to, and the kernel does not even ask the device.
    dd if=/dev/zero of=/dev/vdb bs=512 count=1 conv=fsync 2> /dev/null || echo "disk vdb cannot be written"
    echo "the guest has done with its disks"
}
keep_line() {
    mount -t ext2 /dev/vda /disk
    echo "one more" >> /disk/lines
    lines=$(wc -l < /disk/lines)
    umount /disk
    echo "disk vda has $lines lines"
}
mkdir -p /disk
case $disk in
    check) check_disks ;;
    keep) keep_line ;;
esac
state=none
while :; do
    now=$(total)
    next=${plan# }
    next=${next%% *}
    if [ -n "$next" ] && [ $((now - start)) -ge $((${next%%:*} * 1024)) ]; then
        plan=${plan# $next}
        act ${next#*:}
        now=$(total)
    fi
    if [ $data -gt 0 ] && [ $state = none ] && [ $((now - start)) -gt $((data * 1536)) ]; then
        dd if=/dev/urandom of=/tmp/data bs=1M count=$data 2> /dev/null
        sum=$(md5sum < /tmp/data)
    fi
    if [ -e /tmp/data ]; then
        [ "$(md5sum < /tmp/data)" = "$sum" ] && state=intact || state=LOST
    fi
    movable=$(awk '/zone / { zone = $4 } zone == "Movable" && /^ +managed/ { sum += $2 } END { print sum + 0 }' /proc/zoneinfo)
    node1=$(awk '/MemTotal/ { print $4 }' /sys/devices/system/node/node1/meminfo 2> /dev/null)
    distances=$(cat /sys/devices/system/node/node0/distance)
    echo "guest: $((now - start)) KiB more, $movable pages in Movable, ${node1:-0} KiB on node 1, data $state, distances $distances"
    sleep 0.2
done
