#!/bin/sh
# A program for `exec` to run in a VM: cargo run --example exec -- examples/exec/hello.sh a b
echo "hello from Linux $(uname -r), process $$, arguments: $*"
