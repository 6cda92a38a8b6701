//! What is particular to x86_64 and pure; the rest of this folder is in `arch::native`.

pub mod acpi;
pub mod cmdline;
pub mod e820;
pub mod ioapic;
pub mod layout;
pub mod mp_table;
pub mod page_table;
pub mod ports;
pub mod reset_vector;
pub mod segments;
