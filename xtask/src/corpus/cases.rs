//! The table of cases: what is broken, on which kernels, and which finding is to come first.

use super::bench::{Bench, SERIES};
use super::boot::Boot;
use super::breakages as broken;
use super::{library, module, programs, root};
use crate::architecture::Architecture;
use anyhow::Result;

/// On which kernels a case is booted.
#[derive(Debug, Clone, Copy)]
pub(crate) enum On {
    /// All series of both architectures.
    All,
    /// Two series of each architecture, chosen by the case's name.
    Some,
    /// All series of x86_64.
    X86,
    /// Everywhere but on these kernels, where it does not come about: `x86_64-7`.
    Except(&'static [&'static str]),
}

/// An architecture as logs are named.
pub(crate) fn name_of(architecture: Architecture) -> &'static str {
    if architecture == Architecture::X86_64 { "x86_64" } else { "arm64" }
}

/// Kernels of the newest series are preempted in every loop of a module, so that none locks them up.
const PREEMPTED: &[&str] = &["x86_64-7", "arm64-7"];
/// And 6.12 of x86_64 falls silent in a stall instead of telling of it.
const WITHOUT_STALLS: &[&str] = &["x86_64-6.12", "x86_64-7", "arm64-7"];

/// A way to break a boot.
#[derive(Debug)]
pub(crate) struct Case {
    /// Its name in file names.
    pub(crate) name: &'static str,
    /// What was done, in a few words.
    pub(crate) about: &'static str,
    /// The first finding; none if nothing is wrong.
    pub(crate) expected: fn(Architecture, &str) -> Option<&'static str>,
    /// Where it is booted.
    on: On,
    /// Breaks a healthy boot.
    pub(crate) break_it: fn(&Bench, &mut Boot) -> Result<()>,
}

impl Case {
    /// Whether a log of it is made for this kernel.
    pub(crate) fn runs_on(&self, architecture: Architecture, series: &str) -> bool {
        let x86 = architecture == Architecture::X86_64;
        match self.on {
            On::All => true,
            On::X86 => x86,
            On::Except(kernels) => !kernels.contains(&format!("{}-{series}", name_of(architecture)).as_str()),
            On::Some => {
                // By its name, so that a new case does not change the choice of the others.
                let place = self.name.bytes().fold(0usize, |sum, byte| sum.wrapping_add(usize::from(byte)));
                let number = SERIES.iter().position(|(name, _)| *name == series).unwrap_or(0);
                // Two neighbours of four, the others of them on the other architecture.
                (place.wrapping_add(number).wrapping_add(usize::from(x86).wrapping_mul(2))) % 4 < 2
            }
        }
    }
}

/// One case whose finding is the same everywhere.
macro_rules! case {
    ($name:literal, $about:literal, healthy, $on:expr, $break_it:expr) => {
        Case { name: $name, about: $about, expected: |_, _| None, on: $on, break_it: $break_it }
    };
    ($name:literal, $about:literal, $id:literal, $on:expr, $break_it:expr) => {
        Case { name: $name, about: $about, expected: |_, _| Some($id), on: $on, break_it: $break_it }
    };
    ($name:literal, $about:literal, x86 $x86:literal, arm $arm:literal, $on:expr, $break_it:expr) => {
        Case {
            name: $name,
            about: $about,
            expected: |architecture, _| Some(if architecture == Architecture::X86_64 { $x86 } else { $arm }),
            on: $on,
            break_it: $break_it,
        }
    };
}

/// All cases.
pub(crate) const CASES: &[Case] = &[
    case!("healthy", "nothing is broken", healthy, On::All, |_, _| Ok(())),
    case!("healthy-root", "the kernel mounts an ext4 disk as root", healthy, On::Some, root::healthy),
    case!("healthy-noisy", "programs fail and complain, init does not", healthy, On::Some, broken::noisy),
    case!(
        "healthy-compressed",
        "the initramfs is gzip after an uncompressed archive",
        healthy,
        On::Some,
        broken::two_parts
    ),
    case!("init-undefined", "init is ud2 or udf", x86 "init-undefined-instruction", arm "init-illegal-instruction",
        On::All, |bench, boot| broken::program(bench, boot, programs::UNDEFINED)),
    case!("init-undefined-traced", "init is ud2 or udf, with print-fatal-signals and exception-trace",
        x86 "init-undefined-instruction", arm "init-illegal-instruction",
        On::All, |bench, boot| broken::traced(bench, boot, programs::UNDEFINED)),
    case!("init-new-cpu", "init needs AVX2 or LSE on a processor without", x86 "init-cpu-feature", arm "init-illegal-instruction",
        On::All, |bench, boot| broken::new_cpu(bench, boot, programs::NEW_CPU)),
    case!("init-newer-cpu", "init needs BMI2 or SVE on a processor without", x86 "init-cpu-feature", arm "init-illegal-instruction",
        On::Some, |bench, boot| broken::new_cpu(bench, boot, programs::NEWER_CPU)),
    case!("busybox-zeros", "half of busybox was overwritten with zeros", x86 "init-segfault", arm "init-illegal-instruction",
        On::All, broken::zeroed_busybox),
    case!(
        "archive-cut-in-library",
        "the archive ends inside the C library",
        "init-segfault",
        On::All,
        broken::cut_in_library
    ),
    case!(
        "archive-cut-in-code",
        "the archive ends inside the code of a library",
        x86 "init-segfault",
        arm "init-illegal-instruction",
        On::All,
        library::cut_in_code
    ),
    case!("archive-cut-in-init", "the archive ends inside init", "init-file-busy", On::All, broken::cut_in_init),
    case!("init-segfault", "init reads address 16", "init-segfault", On::All, |bench, boot| broken::program(
        bench,
        boot,
        programs::SEGFAULT
    )),
    case!(
        "init-segfault-traced",
        "init reads address 16, with print-fatal-signals and exception-trace",
        "init-segfault",
        On::Some,
        |bench, boot| broken::traced(bench, boot, programs::SEGFAULT)
    ),
    case!("init-jump-to-null", "init jumps to address 0", "init-segfault", On::Some, |bench, boot| broken::program(
        bench,
        boot,
        programs::JUMP_TO_NULL
    )),
    case!("init-bus-error", "init's file is shorter than its segment", "init-bus-error", On::Some, broken::short_file),
    case!("init-divides", "init divides by zero", "init-arithmetic", On::X86, |bench, boot| broken::program(
        bench,
        boot,
        programs::DIVIDE
    )),
    case!("init-trap", "init is int3 or brk", "init-trap", On::Some, |bench, boot| broken::program(
        bench,
        boot,
        programs::TRAP
    )),
    case!("init-exits-0", "init ends at once", "init-exited", On::Some, |bench, boot| broken::program(
        bench,
        boot,
        programs::EXIT_0
    )),
    case!("init-exits-3", "init is a script that ends with 3", "init-exited", On::Some, |_, boot| {
        boot.tree.script("init", "#!/usr/bin/sh\necho starting\nexit 3\n");
        Ok(())
    }),
    case!(
        "init-command-missing",
        "the last command of init is not there",
        "init-exit-not-found",
        On::Some,
        |_, boot| {
            boot.tree.script("init", "#!/usr/bin/sh\nexec /sbin/no-such-program\n");
            Ok(())
        }
    ),
    case!(
        "init-command-not-executable",
        "the last command of init is no program",
        "init-exit-not-executable",
        On::Some,
        |_, boot| {
            boot.tree.file("sbin/data", "x").script("init", "#!/usr/bin/sh\nexec /sbin/data\n");
            Ok(())
        }
    ),
    case!(
        "init-library-missing",
        "init's library is not there",
        "init-library-missing",
        On::All,
        broken::library_missing
    ),
    case!("init-missing", "there is no /init", "initramfs-without-init", On::All, broken::no_init),
    case!("init-dangling", "/init is a link to nowhere", "initramfs-without-init", On::Some, |_, boot| {
        boot.tree.symlink("init", "/nowhere/init");
        Ok(())
    }),
    case!("init-directory", "/init is a directory", "init-not-executable", On::Some, |_, boot| {
        boot.tree.directory("init");
        Ok(())
    }),
    case!("init-not-executable", "/init has no mode x", "init-not-executable", On::All, |_, boot| {
        boot.tree.file("init", super::boot::HEALTHY_INIT);
        Ok(())
    }),
    case!("init-wrong-machine", "init is for the other architecture", "init-wrong-format", On::All, |bench, boot| {
        boot.tree.script("init", programs::elf(bench.other(), programs::EXIT_0));
        Ok(())
    }),
    case!("init-text", "init is a script without #!", "init-wrong-format", On::Some, |_, boot| {
        boot.tree.script("init", "echo hello\n");
        Ok(())
    }),
    case!(
        "init-loader-missing",
        "init's dynamic loader is not there",
        "init-not-found",
        On::All,
        broken::loader_missing
    ),
    case!(
        "init-hashbang-missing",
        "init's #! names a program that is not there",
        "init-not-found",
        On::Some,
        |_, boot| {
            boot.tree.script("init", "#!/usr/bin/python3\nprint()\n");
            Ok(())
        }
    ),
    case!("init-hashbang-loop", "init's #! names init", "init-hashbang-loop", On::Some, |_, boot| {
        boot.tree.script("init", "#!/init\n");
        Ok(())
    }),
    case!(
        "init-loader-is-text",
        "init's dynamic loader is a text",
        "init-loader-broken",
        On::Some,
        broken::loader_is_text
    ),
    case!("init-silent", "init waits for ever and says nothing", "init-silent", On::Some, broken::silent_init),
    case!(
        "rdinit-missing",
        "rdinit= names a program that is not there",
        "initramfs-without-init",
        On::Some,
        |_, boot| {
            boot.append("rdinit=/sbin/nothing");
            Ok(())
        }
    ),
    case!("gzip-cut", "the gzip of the archive is cut", "initramfs-truncated", On::Some, broken::gzip_cut),
    case!(
        "gzip-damaged",
        "bytes in the gzip of the archive were overwritten",
        "initramfs-corrupt",
        On::Some,
        broken::gzip_damaged
    ),
    case!("xz-crc64", "the archive is xz with CRC64", "initramfs-xz-check", On::Some, broken::xz_crc64),
    case!("cpio-odc", "the archive is cpio of the kind odc", "initramfs-wrong-cpio", On::Some, broken::odc),
    case!(
        "archive-unknown",
        "the archive is of no kind that there is",
        "initramfs-bad-magic",
        On::Some,
        broken::unknown_magic
    ),
    case!("archive-junk", "text follows the archive", "initramfs-junk", On::Some, broken::junk),
    case!("memory-too-small", "the archive does not fit into memory", "initramfs-no-room", On::Some, broken::too_large),
    case!("memory-used-up", "init fills the memory", "out-of-memory", On::Some, broken::fills_memory),
    case!("root-no-driver", "root=/dev/vda without a driver", "root-device-missing", On::All, root::no_driver),
    case!("root-label", "root=LABEL=, which the kernel does not know", "root-by-label", On::Some, root::label),
    case!("root-uuid", "root=UUID=, which the kernel does not know", "root-by-label", On::Some, root::uuid),
    case!("root-partuuid", "root=PARTUUID= of no partition", "root-device-missing", On::Some, root::partuuid),
    case!("root-wait", "rootwait for a disk that does not come", "root-wait", On::Some, root::wait),
    case!("root-wrong-number", "root= is the number of no disk", "root-device-missing", On::Some, root::wrong_number),
    case!("root-no-filesystem", "the disk has no file system", "root-no-filesystem", On::All, root::no_filesystem),
    case!(
        "root-unknown-type",
        "rootfstype= that the kernel does not have",
        "root-filesystem-unsupported",
        On::Some,
        root::unknown_type
    ),
    case!(
        "root-ext4-feature",
        "an ext4 feature that no kernel has",
        "ext4-feature-unsupported",
        On::All,
        root::ext4_feature
    ),
    case!(
        "root-ext4-ro-feature",
        "an ext4 feature that allows reading only",
        "ext4-feature-unsupported",
        On::Some,
        root::ext4_ro_feature
    ),
    case!(
        "root-dirty-journal",
        "a read-only disk with a dirty journal",
        "root-dirty-journal",
        On::All,
        root::dirty_journal
    ),
    case!(
        "root-bad-checksum",
        "the checksum of the superblock is wrong",
        "root-superblock-damaged",
        On::Some,
        root::bad_checksum
    ),
    case!("root-without-init", "the root has no init", "no-working-init", On::All, root::without_init),
    case!(
        "root-init-argument",
        "init= names a program that is not there",
        "init-not-found",
        On::Some,
        root::init_argument
    ),
    case!(
        "root-init-wrong-machine",
        "the root's init is for the other architecture",
        "init-wrong-format",
        On::Some,
        root::wrong_machine
    ),
    case!("sysrq-crash", "init crashes the kernel by sysrq", "kernel-crash-requested", On::All, |_, boot| {
        broken::shell(boot, "echo c >/proc/sysrq-trigger");
        Ok(())
    }),
    case!("oops-null", "a module reads address 0 and oops=panic", "kernel-oops", On::All, module::null),
    case!("oops-init", "a module reads address 0 in init itself", "kernel-oops", On::Some, module::null_in_init),
    case!("oops-bug", "a module runs ud2 or udf", "kernel-oops", On::Some, module::undefined),
    case!("soft-lockup", "a module loops for ever", "soft-lockup", On::Except(PREEMPTED), module::soft_lockup),
    case!(
        "rcu-stall",
        "a module loops for ever, without the soft lockup detector",
        "rcu-stall",
        On::Except(WITHOUT_STALLS),
        module::rcu_stall
    ),
    case!("hung-task", "init writes to a frozen file system", "hung-task", On::Some, root::hung_task),
    case!("halted", "init halts the machine", "system-halted", On::Some, |_, boot| {
        broken::shell(boot, "halt -f");
        Ok(())
    }),
    case!("no-console", "no console= on x86", "no-output", On::X86, broken::no_console),
    case!("panic-stays", "init ends, and the machine stays at the panic", "init-exited", On::Some, |_, boot| {
        boot.cmdline = boot.cmdline.replace(" panic=-1", "");
        boot.tree.script("init", "#!/usr/bin/sh\nexit 1\n");
        Ok(())
    }),
];
