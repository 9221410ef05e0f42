#!/bin/sh
# The practice network of these documents: network namespaces, and nothing else of this machine.
#
#     client 198.51.100.7 (and .10-.250) --- router --- 203.0.113.0/24: lb .2, b1 .11, b2 .12, c1 .21; the VIP is .10
#
#   lab.sh up [nat|dsr]   makes it. nat: backends send what is for clients through lb; dsr: past it, and they hold the VIP
#   lab.sh down           takes it away
#   lab.sh ask N [URL]    N requests, each from another client's address; prints who answered how often
#   lab.sh in HOST CMD…   runs a command on client, router, lb, b1, b2 or c1
#   lab.sh sick HOST      its health check fails from now on; `lab.sh well HOST` ends it
set -eu

home=${LAB_DIR:-/run/lb-lab}
vip=203.0.113.10

in_() { host=$1; shift; nsenter --net="/run/netns/lab-$host" "$@"; }

# host, MAC's last byte, address: a host on the LAN.
host() {
    ip netns add "lab-$1"
    in_ "$1" ip link set lo up
    ip -n lab-router link add "to-$1" type veth peer name eth0 netns "lab-$1" address "02:00:00:00:01:$2"
    ip -n lab-router link set "to-$1" master lan up
    in_ "$1" ip addr add "$3/24" dev eth0
    in_ "$1" ip link set eth0 up
    in_ "$1" ip route add default via "$4"
    # Checksums are computed where packets are made: a program on the way sees them whole.
    in_ "$1" ethtool -K eth0 tx off >/dev/null
}

backend() {
    host "$1" "$2" "$3" "$4"
    if [ "$mode" = dsr ]; then
        in_ "$1" ip addr add $vip/32 dev lo
        in_ "$1" sysctl -qw net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2 net.ipv4.conf.all.rp_filter=0
    fi
    mkdir -p "$home/$1"
    echo "$1" >"$home/$1/index.html"
    echo ok >"$home/$1/healthz"
    (cd "$home/$1" && exec nsenter --net="/run/netns/lab-$1" python3 -m http.server 80 >/dev/null 2>&1) &
    echo $! >"$home/$1.pid"
}

up() {
    mode=${1:-nat}
    mkdir -p "$home"
    ip netns add lab-router
    in_ router ip link set lo up
    in_ router ip link add lan type bridge mcast_snooping 0
    in_ router ip addr add 203.0.113.1/24 dev lan
    in_ router ip link set lan up
    in_ router sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.lan.send_redirects=0
    ip netns add lab-client
    ip -n lab-router link add clients type veth peer name eth0 netns lab-client
    in_ router ip addr add 198.51.100.1/24 dev clients
    in_ router ip link set clients up
    in_ client ip link set lo up
    in_ client ip addr add 198.51.100.7/24 dev eth0
    in_ client ip link set eth0 up
    in_ client ip route add default via 198.51.100.1
    in_ client ethtool -K eth0 tx off >/dev/null
    in_ router ethtool -K clients tx off >/dev/null
    n=10
    while [ $n -le 250 ]; do in_ client ip addr add 198.51.100.$n/32 dev eth0; n=$((n + 1)); done
    host lb 02 203.0.113.2 203.0.113.1
    in_ lb sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.eth0.send_redirects=0
    via=203.0.113.2
    [ "$mode" = nat ] || via=203.0.113.1
    backend b1 11 203.0.113.11 $via
    backend b2 12 203.0.113.12 $via
    backend c1 21 203.0.113.21 $via
    for try in 1 2 3 4 5 6 7 8 9 10; do
        in_ lb curl -fsm1 http://203.0.113.21/ >/dev/null 2>&1 && break
        sleep 0.3
    done
    echo "the practice network is there ($mode)"
}

down() {
    for pid in "$home"/*.pid; do
        [ ! -e "$pid" ] || kill "$(cat "$pid")" 2>/dev/null || true
    done
    for name in client router lb b1 b2 c1; do ip netns del "lab-$name" 2>/dev/null || true; done
    rm -rf "$home"
}

ask() {
    url=${2:-http://$vip/}
    n=0
    while [ $n -lt "$1" ]; do
        in_ client curl -sm2 --interface 198.51.100.$((10 + n % 241)) "$url" || echo "no answer"
        n=$((n + 1))
    done | sort | uniq -c
}

case ${1:-} in
    up | down | ask) "$@" ;;
    in) shift; in_ "$@" ;;
    sick) mv "$home/$2/healthz" "$home/$2/healthz.off" ;;
    well) mv "$home/$2/healthz.off" "$home/$2/healthz" ;;
    *) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
