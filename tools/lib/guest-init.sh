#!/bin/busybox sh
# shellcheck shell=dash
# /init of a test guest: mounts, modules and users, then the command whose name is in /etc/mem_watcher/command, with its
# output and its exit code on virtio ports of their own; without a command, a shell on the console.

/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/shm /dev/pts /run /tmp /root
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo +memory >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null # refused with cgroup_disable=memory
ip link set lo up
ln -s /proc/self/fd /dev/fd
hostname guest

while read -r module; do
    insmod "/modules/$module" || echo "could not load $module" >/dev/kmsg
done </modules/order

for port in /sys/class/virtio-ports/*; do
    [ -e "$port" ] && ln -s "/dev/${port##*/}" "/dev/$(cat "$port/name")"
done

# shellcheck disable=SC1091 # tools/vm writes that file
. /etc/mem_watcher/environment
cd /root || exit
if [ -e /etc/mem_watcher/command ]; then
    echo started >/dev/status-port
    sh /etc/mem_watcher/command </dev/null >/dev/stdout-port 2>/dev/stderr-port
    code=$?
    if [ -e /etc/mem_watcher/out ]; then
        tar cf - -C "$(cat /etc/mem_watcher/out)" . >/dev/out-port
    fi
    echo "ended $code" >/dev/status-port
else
    echo "Linux $(uname -r). Ctrl-A X or poweroff -f leaves."
    setsid cttyhack sh -l
fi
sync
poweroff -f
