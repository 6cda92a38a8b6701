//! The vmm process.

fn main() {
    policies::lockdown::begin_process();
    vmm_core::vmm::main()
}
