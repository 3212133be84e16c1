# Functions for the scenarios whose guest has a screen.

# Lets a visitor in, who is outside the lab: VNC and the web page, by the lab host's network card.
screen_open() {
    ip address add 10.0.2.15/24 dev eth0 && ip link set eth0 up || return
    socat TCP4-LISTEN:5900,bind=10.0.2.15,reuseaddr,fork "UNIX-CONNECT:$(bulkhead console lab --vnc)" &
    socat TCP4-LISTEN:6080,bind=10.0.2.15,reuseaddr,fork TCP4:127.0.0.1:6080 &
    bulkhead console lab
    bulkhead device ls lab
    echo "web: $(bulkhead console lab --web)"
    echo 'screen: come in'
}

# All four processes die at once and come back; the picture and the keys are the proof.
screen_kill() {
    local name tries=100
    bulkhead screenshot lab out/before.png || return
    for name in video keyboard mouse console; do
        kill -KILL "$(bulkhead device ls lab | awk -v name=$name '$1 == name { print $3 }')"
    done
    until [ "$(bulkhead device ls lab | awk '$2 == "serving" && $5 == 1' | wc -l)" = 4 ]; do
        sleep 0.2
        [ $(( tries -= 1 )) -gt 0 ] || { bulkhead device ls lab; return 1; }
    done
    bulkhead screenshot lab out/after.png && cmp out/before.png out/after.png && echo 'screen: the same after the kill'
}

# The whole story of a guest that has been started; what the visitor does is the visitor's.
screen_tour() {
    guest_wait_for 'screen: ready' 200 && screen_open && guest_wait_for 'mouse: ' 200 \
        && screen_kill \
        && bulkhead type lab 'touch /run/seen' --enter \
        && guest_wait_for 'mode: ' 60 && sleep 2 && bulkhead screenshot lab out/mode.png \
        && bulkhead type lab 'touch /run/back' --enter
}
