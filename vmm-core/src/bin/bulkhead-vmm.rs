//! The vmm process.

fn main() {
    policies::lockdown::install_panic_hook();
    vmm_core::vmm::main()
}
