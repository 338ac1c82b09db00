#!/bin/sh
# Whether the server lives. Over TCP: the server of the first start answers on its socket too.
#
# One that refuses connections because it starts, recovers or shuts down lives: ending it would start its recovery over.
set -eu
answer=0
pg_isready -q -h 127.0.0.1 -U postgres || answer=$?
rejecting=1
[ "$answer" -le "$rejecting" ]
