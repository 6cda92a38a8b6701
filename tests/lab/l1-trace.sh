#!/bin/sh
# Puts a traced broker into the place of the broker in the lab's host; xtask appends the calls of run_tests, and then one
# of print_traces.
traces=/bulkhead/traces
mkdir -p /bulkhead/bin "$traces" && chmod 1777 "$traces"
: > "$traces/lock" && chmod 666 "$traces/lock"
ln -s /bulkhead/real/bulkhead-* /bulkhead/tools/* /bulkhead/bin/
printf '#!/bin/sh\nexec /bulkhead/tools/trace %s /bulkhead/real/broker "$@"\n' "$traces" > /bulkhead/bin/broker
chmod 755 /bulkhead/bin/broker
print_traces() {
    /bulkhead/tools/trace "$traces" | sed 's/^/bulkhead-trace: /'
}
