//! Instructions of A64 that stop a program: those that are undefined, those that trap, and those that newer processors
//! have. A table of our own: a decoder of all instructions would be much more code in the jail (Arm ARM, C4.1).

use super::instruction::{Instruction, Kind};

/// A group of instructions: mask and value of the word, what it is called, the feature, the level that has it.
struct Group {
    mask: u32,
    value: u32,
    name: &'static str,
    feature: &'static str,
    level: &'static str,
}

const fn group(mask: u32, value: u32, name: &'static str, feature: &'static str, level: &'static str) -> Group {
    Group { mask, value, name, feature, level }
}

/// The groups, the narrower before the wider.
const GROUPS: &[Group] = &[
    group(0x3fff_fc00, 0x38bf_c000, "ldapr", "RCpc", "Armv8.3-A"),
    group(0x3fa0_7c00, 0x08a0_7c00, "cas", "LSE", "Armv8.1-A"),
    group(0xbfa0_7c00, 0x0820_7c00, "casp", "LSE", "Armv8.1-A"),
    group(0x3b20_fc00, 0x3820_8000, "swp", "LSE", "Armv8.1-A"),
    group(
        0x3b20_8c00,
        0x3820_0000,
        "an atomic of LSE (ldadd, ldclr, ldeor, ldset, ldmax or ldmin)",
        "LSE",
        "Armv8.1-A",
    ),
    group(0xff3e_0c00, 0x4e28_0800, "an AES instruction", "AES", "an option of Armv8.0-A"),
    group(0xff20_8c00, 0x5e00_0000, "a SHA-1 or SHA-256 instruction", "SHA1 and SHA2", "an option of Armv8.0-A"),
    group(0xff3e_0c00, 0x5e28_0800, "a SHA-1 or SHA-256 instruction", "SHA1 and SHA2", "an option of Armv8.0-A"),
    group(
        0xff00_0000,
        0xce00_0000,
        "a SHA-512, SHA-3, SM3 or SM4 instruction",
        "SHA512 or SHA3",
        "an option of Armv8.2-A",
    ),
    group(0x7fe0_e000, 0x1ac0_4000, "crc32", "CRC32", "Armv8.1-A"),
    group(0xbfe0_fc00, 0x0e80_9400, "sdot", "DotProd", "Armv8.2-A"),
    group(0xbfe0_fc00, 0x2e80_9400, "udot", "DotProd", "Armv8.2-A"),
    group(0xbf20_fc00, 0x2e00_8400, "sqrdmlah", "RDM", "Armv8.1-A"),
    group(0xffff_fc00, 0x1e7e_0000, "fjcvtzs", "JSCVT", "Armv8.3-A"),
    group(0xffe0_fc00, 0x9ac0_3000, "pacga", "PAuth", "Armv8.3-A"),
    group(0xffff_0000, 0xdac1_0000, "a pointer authentication instruction", "PAuth", "Armv8.3-A"),
    group(0xffff_fbff, 0xd65f_0bff, "retaa", "PAuth", "Armv8.3-A"),
    group(0xfe9f_f800, 0xd61f_0800, "braa", "PAuth", "Armv8.3-A"),
    group(0xff20_0400, 0xf820_0400, "ldraa", "PAuth", "Armv8.3-A"),
    group(0xffe0_fc00, 0x9ac0_1000, "irg", "MTE", "Armv8.5-A"),
    group(0xffff_ffc0, 0xd53b_2400, "mrs RNDR", "RNG", "Armv8.5-A"),
    group(0x3f20_0400, 0x1900_0400, "cpy or set", "MOPS", "Armv8.8-A"),
    // Encoding groups of their own: bits 28 to 25.
    group(0x1e00_0000, 0x0400_0000, "an SVE instruction", "SVE", "an option of Armv8.2-A"),
    group(0x9e00_0000, 0x8000_0000, "an SME instruction", "SME", "an option of Armv9.2-A"),
];

/// What the word at a program counter is.
pub(crate) fn decode(word: u32) -> Instruction {
    let plain =
        |kind, name: String| Instruction { kind, name, feature: None, level: None, bytes: format!("{word:08x}") };
    let immediate = (word >> 5) & 0xffff;
    if word == 0 {
        return plain(Kind::Zeros, "zeros (udf #0)".to_owned());
    }
    if word >> 16 == 0 {
        return plain(Kind::Undefined, format!("udf #{word}"));
    }
    match word & 0xffe0_001f {
        0xd420_0000 => return plain(Kind::Breakpoint, format!("brk #{immediate:#x}")),
        0xd440_0000 => return plain(Kind::Halt, format!("hlt #{immediate:#x}")),
        _ => {}
    }
    match GROUPS.iter().find(|group| word & group.mask == group.value) {
        Some(group) => Instruction {
            feature: Some(group.feature.to_owned()),
            level: Some(group.level),
            ..plain(Kind::Feature, group.name.to_owned())
        },
        None => plain(Kind::Baseline, "an instruction that is in no group of newer ones".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_name_the_feature_that_they_need() {
        let cases = [
            (0xf820_03e1, "LSE"),           // ldadd x0, x1, [sp]
            (0xf8e0_83e1, "LSE"),           // swpal x0, x1, [sp]
            (0xc8a0_7fe1, "LSE"),           // cas x0, x1, [sp]
            (0x4820_7c82, "LSE"),           // casp x0, x1, x2, x3, [x4]
            (0x2518_e3e0, "SVE"),           // ptrue p0.b
            (0x4e28_4820, "AES"),           // aese v0.16b, v1.16b
            (0x5e02_4020, "SHA1 and SHA2"), // sha256h q0, q1, v2.4s
            (0x9ac0_4c20, "CRC32"),         // crc32x w0, w1, x0
            (0x4e82_9420, "DotProd"),       // sdot v0.4s, v1.16b, v2.16b
            (0x9ac2_3020, "PAuth"),         // pacga x0, x1, x2
            (0xd65f_0bff, "PAuth"),         // retaa
            (0xf8bf_c020, "RCpc"),          // ldapr x0, [x1]
        ];
        for (word, feature) in cases {
            assert_eq!(decode(word).feature.as_deref(), Some(feature), "{word:08x}");
        }
    }

    #[test]
    fn usual_instructions_need_nothing() {
        // nop, ret, stp, ldr, add, adrp, svc, ldxr, stxr, mov v, fadd, mul, cbz, b.eq.
        for word in [
            0xd503_201f,
            0xd65f_03c0,
            0xa9bf_7bfd,
            0xf940_0000,
            0x9100_0000,
            0x9000_0000,
            0xd400_0001,
            0xc85f_7c00,
            0xc800_7c00,
            0x4ea0_1c00,
            0x1e60_2800,
            0x9b00_7c00,
            0xb400_0000,
            0x5400_0000,
            0xf860_6820,
            0x1ac0_0820,
            0xd503_233f,
            0x4e20_8400,
            0x6e20_8400,
        ] {
            assert_eq!(decode(word).kind, Kind::Baseline, "{word:08x}");
        }
    }

    #[test]
    fn traps_and_zeros_are_told_apart() {
        assert_eq!(decode(0).kind, Kind::Zeros);
        assert_eq!(decode(0x17).name, "udf #23");
        assert_eq!(decode(0xd420_7d00).name, "brk #0x3e8");
        assert_eq!(decode(0xd440_0000).kind, Kind::Halt);
    }
}
