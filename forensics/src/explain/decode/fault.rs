//! Accesses to memory that failed: the address, and what the processor said of the access.

use crate::explain::names::Names;

/// The largest offset from a null pointer that still looks like one.
const NEAR_NULL: u64 = 0x1_0000;
/// The first address that no program can have, on either architecture with 48 bits.
const USER_END: u64 = 1 << 48;

/// Binds `address-class` of an address: what kind of mistake leads to it.
pub(crate) fn bind_address(address: u64, names: &mut Names) {
    names.bind("fault-address", format!("{address:#x}"));
    let class = match address {
        0 => "a null pointer",
        1..NEAR_NULL => "an offset from a null pointer",
        NEAR_NULL..USER_END => "an address behind which nothing is mapped, or not for this access",
        _ => "no address that a program can have, so the pointer was overwritten",
    };
    names.bind("address-class", class);
}

/// Binds `fault-access` of the error code of an x86 page fault (Intel SDM volume 3, 5.7).
pub(crate) fn bind_page_fault(bits: u64, names: &mut Names) {
    let access = match (bits & 0x10 != 0, bits & 2 != 0) {
        (true, _) => "execute",
        (false, true) => "write",
        (false, false) => "read",
    };
    names.bind("fault-access", access);
    names.bind("fault-state", if bits & 1 == 0 { "nothing is mapped there" } else { "the mapping forbids it" });
}

/// Binds `fault-access`, `fault-state` and `exception` of an arm64 exception syndrome (Arm ARM, ESR_EL1).
pub(crate) fn bind_syndrome(syndrome: u64, names: &mut Names) {
    let class = (syndrome >> 26) & 0x3f;
    let exception = match class {
        0x00 => "an undefined instruction",
        0x07 => "an instruction of floating point or SIMD that is switched off",
        0x0e => "an illegal execution state",
        0x15 => "a system call",
        0x19 => "an SVE instruction that is switched off",
        0x20 | 0x21 => "an instruction fetch",
        0x22 => "a program counter that is not aligned",
        0x24 | 0x25 => "a data access",
        0x26 => "a stack pointer that is not aligned",
        0x2f => "an error of the memory or the bus",
        0x3c => "a breakpoint instruction",
        _ => return,
    };
    names.bind("exception", exception);
    if !matches!(class, 0x20 | 0x21 | 0x24 | 0x25) {
        return;
    }
    let access = match class {
        0x20 | 0x21 => "execute",
        _ if syndrome & (1 << 6) != 0 => "write",
        _ => "read",
    };
    names.bind("fault-access", access);
    let state = match syndrome & 0x3f {
        0x00..=0x03 => "the address is too large",
        0x04..=0x07 => "nothing is mapped there",
        0x08..=0x0b => "the mapping was not used yet",
        0x0c..=0x0f => "the mapping forbids it",
        0x10..=0x17 => "the memory or a device did not answer",
        0x21 => "the address is not aligned",
        _ => return,
    };
    names.bind("fault-state", state);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(bind: impl FnOnce(&mut Names)) -> Names {
        let mut names = Names::default();
        bind(&mut names);
        names
    }

    #[test]
    fn page_fault_bits_are_told() {
        let names = bound(|names| bind_page_fault(6, names));
        assert_eq!(
            (names.get("fault-access"), names.get("fault-state")),
            (Some("write"), Some("nothing is mapped there"))
        );
        assert_eq!(bound(|names| bind_page_fault(0x15, names)).get("fault-access"), Some("execute"));
    }

    #[test]
    fn syndrome_is_told() {
        let names = bound(|names| bind_syndrome(0x9200_0006, names));
        assert_eq!((names.get("fault-access"), names.get("exception")), (Some("read"), Some("a data access")));
        assert_eq!(bound(|names| bind_syndrome(0x9200_0046, names)).get("fault-access"), Some("write"));
        assert_eq!(bound(|names| bind_syndrome(0xf200_03e8, names)).get("exception"), Some("a breakpoint instruction"));
    }

    #[test]
    fn addresses_have_classes() {
        let class = |address| bound(|names| bind_address(address, names)).get("address-class").unwrap().to_owned();
        assert_eq!(class(0), "a null pointer");
        assert!(class(0x10).contains("offset"));
        assert!(class(u64::MAX).contains("overwritten"));
    }
}
