//! Builds the bare-metal guests, so that the tests need no foreign kernel. They are embedded into the tests' library,
//! and a test program can be carried to another machine alone.

use std::path::Path;
use std::process::Command;

/// The guest runs before anything could enable vector registers, with interrupts on the stack of what they interrupt.
const CODEGEN: [&str; 13] = [
    "opt-level=2",
    "panic=abort",
    "relocation-model=static",
    "no-redzone=yes",
    "target-feature=-sse,-sse2,-sse3,-ssse3,-sse4.1,-sse4.2,-avx,-avx2",
    "debuginfo=0",
    "strip=debuginfo",
    "overflow-checks=no",
    "debug-assertions=no",
    "link-arg=-nostdlib",
    "link-arg=-static",
    "link-arg=-no-pie",
    "target-cpu=x86-64",
];

fn main() {
    println!("cargo::rerun-if-changed=guest");
    println!("cargo::rerun-if-changed=build.rs");
    let out = std::env::var("OUT_DIR").unwrap_or_default();
    for (name, source, flags) in [
        ("guest.elf", "guest/main.rs", &[][..]),
        ("guest-pvh.elf", "guest/main.rs", &["--cfg", "pvh"][..]),
        ("guest-quick.elf", "guest/quick.rs", &[][..]),
    ] {
        let to = Path::new(&out).join(name);
        let built = match std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() {
            Ok("x86_64") => build(&to, source, flags),
            _ => std::fs::write(&to, arm64_image()).map_err(|error| error.to_string()),
        };
        if let Err(why) = built {
            println!("cargo::error=the bare-metal guest {name} cannot be built: {}", why.replace('\n', " | "));
        }
    }
}

/// An arm64 Image ("Booting AArch64 Linux", call the kernel image) that does nothing but power off.
fn arm64_image() -> Vec<u8> {
    const HEADER_BYTES: usize = 64;
    const MAGIC: &[u8] = b"ARM\x64";
    // PSCI 0.2 §5.9, SYSTEM_OFF: movz w0, #8; movk w0, #0x8400, lsl #16; hvc #0; b .
    const CODE: [u32; 4] = [0x5280_0100, 0x72b0_8000, 0xd400_0002, 0x1400_0000];
    // b: over the header's 16 words.
    const BRANCH_TO_CODE: u32 = 0x1400_0010;
    let mut image = BRANCH_TO_CODE.to_le_bytes().to_vec();
    image.resize(HEADER_BYTES, 0);
    let image_size: u64 = 4096;
    image.splice(16..24, image_size.to_le_bytes());
    image.splice(56..60, MAGIC.iter().copied());
    image.extend(CODE.iter().flat_map(|word| word.to_le_bytes()));
    image
}

fn build(to: &Path, source: &str, flags: &[&str]) -> Result<(), String> {
    let compiler = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let target = std::env::var("TARGET").unwrap_or_default();
    let script = "link-arg=-Wl,-T,guest/link.ld,--build-id=none,--no-eh-frame-hdr,-n";
    let mut command = Command::new(compiler);
    command.args(["--edition", "2024", "--crate-type", "bin", "--crate-name", "guest", "--target", &target]);
    command.args(CODEGEN.iter().chain([&script]).flat_map(|option| ["-C", option]));
    command.args(flags).arg("-o").arg(to).arg(source);
    // The flags of the hosted binaries are not for the guest. The compiler warns of the missing sse2; that is meant.
    command.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS").env_remove("RUSTC_WRAPPER");
    let output = command.output().map_err(|error| error.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}
