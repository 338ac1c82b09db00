# Ends everything of one test bed once its owner has ended for any reason: then the pipe closes.
# $1: the folder to remove; $2: the mark that every process of the test bed carries in its environment.
# Lines read: "pid PID START_TICKS" is a process to end, "file PATH" a file to remove.
trap '' INT HUP TERM QUIT
folder=$1
mark=$2
processes=
files=
while read -r kind first second; do
  case $kind in
    pid) processes="$processes $first:$second" ;;
    file) files="$files$first${second:+ $second}
" ;;
  esac
done

# Prints "state start_ticks" of a process; nothing when there is none.
state_of() {
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
  # shellcheck disable=SC2086 # split on purpose
  set -- ${stat##*) }
  echo "$1 ${20}"
}

end_all() {
  found=no
  for process in $processes; do
    pid=${process%%:*}
    case $(state_of "$pid") in
      Z*) ;;
      *" ${process#*:}") kill -KILL "$pid" 2>/dev/null && found=yes ;;
    esac
  done
  for environment in $(grep -lszxF "$mark" /proc/[0-9]*/environ 2>/dev/null); do
    pid=${environment#/proc/}
    kill -KILL "${pid%/environ}" 2>/dev/null && found=yes
  done
  [ "$found" = no ]
}

round=0
while [ "$round" -lt 100 ]; do
  if end_all; then
    rm -rf "$folder" 2>/dev/null
    [ -e "$folder" ] || break
  fi
  sleep 0.1
  round=$((round + 1))
done
printf %s "$files" | while IFS= read -r file; do rm -f "$file"; done
