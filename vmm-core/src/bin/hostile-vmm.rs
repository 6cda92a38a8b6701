//! The vmm process as in `bulkhead-vmm`, in a library with the way in for what a captured one tries: see the crate
//! `hostile`. For tests only.

fn main() {
    policies::lockdown::begin_process();
    vmm_core::vmm::main()
}
