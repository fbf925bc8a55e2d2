#!/bin/sh
# What a container has got, one fact a line. It runs in the container, on nothing but busybox; the
# tests read it (engine.py). Several facts are asked for in one go: `inside nodes , entries vc mem`.
#
#   nodes                      each device node: its path, number in hex, owner
#   entries CLASS...           each entry of these classes, and the digest of each file in it
#   open NODE...               whether it can be opened for reading and writing
#   make NODE MAJOR MINOR      make a node by hand
#   scan ENDING CLASS FILE...  scan as libhailort does
#   mark WORD                  tell that this point is reached
#   wait SECONDS

nodes() {
    find /dev -type c -exec stat -c 'node %n %t:%T %u:%g' '{}' ';'
    find /dev -type b -exec stat -c 'block %n %t:%T %u:%g' '{}' ';'
}

entries() {
    for class; do
        [ -d "/sys/class/$class" ] || continue
        echo "class $class"
        find "/sys/class/$class" -mindepth 1 -maxdepth 1 | while read -r entry; do
            echo "entry $class ${entry##*/}"
            find "$entry/" -type f | while read -r file; do
                digest=$(sha256sum <"$file" 2>/dev/null) || digest=unreadable
                echo "file $class $file ${digest%% *}"
            done
        done
    done
}

open() {
    for node; do
        if ! [ -c "$node" ]; then
            echo "refused $node there is no such node"
        elif problem=$( (exec 3<>"$node") 2>&1); then
            echo "opened $node"
        else
            echo "refused $node ${problem##*: }"
        fi
    done
}

make() {
    mknod "$1" c "$2" "$3" || echo "unmade $1"
}

# libhailort's rule, for a class directory and the files that it reads in each entry:
#  - no directory: 64, the driver is not installed
#  - entries in the order of readdir, which find keeps
#  - each file has to open, and one getline has to hit its end: with a newline after the text, 85
#  - accelerator_type has to be a number
#  - one bad entry, and the whole scan has failed
# ENDING is `bare` for that rule. The kernel's own attributes, like dev, end with a newline: `line`
# takes those, and asks for one line just as strictly.
scan() {
    ending=$1 class=$2
    shift 2
    if ! [ -d "/sys/class/$class" ]; then
        echo "scan $class 64"
        return
    fi
    # shellcheck disable=SC2044 # kernel names have no blanks, and a pipe would hide the return
    for entry in $(find "/sys/class/$class" -mindepth 1 -maxdepth 1); do
        found=
        for file; do
            if ! text=$(one_getline "$ending" "$entry/$file" 2>/dev/null); then
                echo "scan $class 85 $entry/$file"
                return
            fi
            case $file:$text in
            accelerator_type: | accelerator_type:*[!0-9]*)
                echo "scan $class 85 $entry/$file"
                return
                ;;
            esac
            found="$found $text"
        done
        echo "found $class ${entry##*/}$found"
    done
    echo "scan $class 0"
}

one_getline() {
    cat "$2" >/dev/null || return
    {
        IFS= read -r text
        newline=$? # 0: there was one; 1: the file ended before
        [ "$newline" -eq 1 ] || ! IFS= read -r _ || return 1
    } <"$2"
    case $1:$newline in bare:1 | line:0) echo "$text" ;; *) return 1 ;; esac
}

mark() {
    echo "mark $1"
}

wait() {
    usleep "$1"
}

while [ $# -gt 0 ]; do
    verb=$1 arguments=
    shift
    while [ $# -gt 0 ] && [ "$1" != , ]; do
        arguments="$arguments $1"
        shift
    done
    [ $# -eq 0 ] || shift
    # shellcheck disable=SC2086 # words, each an argument
    $verb $arguments
done
echo end
