#!/bin/sh
# The process that stands for the application, beside Ray's head: `mecha run "$@"`, minding what the end of a Pod means.
#
# To mecha, SIGTERM says: end the application, on every node. To a container it says: this Pod goes, for whatever reason,
# and another one comes. So mecha is ended here without a word: its hosts and its controller live on in Ray, and the
# driver of the next Pod finds them. When mecha was told itself, it ends the application, and this waits for the Pod's
# end instead of being started again:
#
#     kill $(cat /tmp/mecha.pid)
mecha run "$@" &
echo $! > "${PID_FILE:-/tmp/mecha.pid}"
trap 'kill -KILL $!; exit 0' TERM INT
wait $! || exit $?
echo "driver: the application has been ended; a new Pod starts it again"
sleep infinity &
wait $!
