//! What of a machine depends on the host's hardware: the interrupt controller, and the CPUs that run vCPUs.

use super::{Given, Origin, Problem};
use crate::arch::{self, Gics};
use wire::message::GicVersion;
use wire::{CpuList, VcpuCount};

/// The most vCPUs of a GICv2 (GIC architecture specification v2, §1.4: CPU interfaces).
const GIC_V2_MOST_VCPUS: u8 = 8;

/// What the host offers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Host {
    /// `KVM_CAP_MAX_VCPUS`; none where there is no KVM to ask.
    pub(crate) max_vcpus: Option<u8>,
    /// The interrupt controllers for guests; none where there is no choice, or no KVM to ask.
    pub(crate) gics: Option<Gics>,
    /// Counts the CPUs, for a config that names some.
    pub(crate) count_cpus: fn() -> Option<u16>,
}

impl Host {
    /// Asks /dev/kvm.
    pub(crate) fn probe() -> Self {
        let kvm = kvm_ioctls::Kvm::new().ok();
        let max_vcpus = kvm.as_ref().map(|kvm| u8::try_from(kvm.get_max_vcpus()).unwrap_or(u8::MAX));
        Self { max_vcpus, gics: kvm.as_ref().and_then(arch::gics), count_cpus }
    }
}

/// Refuses the choice of an interrupt controller where there is none.
pub(super) fn gic_is_for_arm64(given: &Given<GicVersion>) -> Result<(), Problem> {
    match arch::HAS_GIC {
        true => Ok(()),
        false => Err(Problem::new(&given.origin, "is set, and only an arm64 machine has a GIC", "leave it out")),
    }
}

/// The interrupt controller: the one asked for, else the newest that the host has.
pub(super) fn gic(
    given: Option<&Given<GicVersion>>,
    vcpus: Option<(VcpuCount, Origin)>,
    host: Host,
) -> Result<GicVersion, Problem> {
    let has = |version| match (host.gics, version) {
        (None, _) => true,
        (Some(Gics { v2, .. }), GicVersion::V2) => v2,
        (Some(Gics { v3, .. }), GicVersion::V3) => v3,
    };
    let version = match given.map(|given| given.value) {
        Some(version) => version,
        None if has(GicVersion::V3) => GicVersion::V3,
        None => GicVersion::V2,
    };
    if let Some(given) = given
        && !has(version)
    {
        let name = if version == GicVersion::V2 { "v2" } else { "v3" };
        let what = format!("is {name:?}, which this host's KVM does not have for guests");
        return Err(Problem::new(&given.origin, what, "leave it out, and the one that it has is taken"));
    }
    match vcpus {
        Some((vcpus, origin)) if version == GicVersion::V2 && vcpus.get() > GIC_V2_MOST_VCPUS => {
            let what = format!("is {}, and the interrupt controller is a GICv2", vcpus.get());
            let right = match given {
                Some(_) if has(GicVersion::V3) => "a GICv2 serves at most 8 vCPUs; machine.gic = \"v3\" more",
                _ => "a GICv2 serves at most 8 vCPUs; more need a host with a GICv3",
            };
            Err(Problem::new(&origin, what, right))
        }
        _ => Ok(version),
    }
}

/// Whether a GICv2 is all that the host has.
pub(super) fn has_gic_v2_only(host: Host) -> bool {
    host.gics == Some(Gics { v2: true, v3: false })
}

/// The host CPUs that may run vCPUs.
pub(super) fn cpus(given: Option<&Given<Vec<i128>>>, host: Host) -> Result<CpuList, Problem> {
    let Some(given) = given else { return Ok(CpuList::default()) };
    let problem = |what: String, right: String| Err(Problem::new(&given.origin, what, right));
    if given.value.is_empty() {
        return problem("is empty".to_owned(), "name host CPUs, or leave it out for all".to_owned());
    }
    let end = (host.count_cpus)().unwrap_or(CpuList::END).min(CpuList::END);
    let mut numbers = Vec::with_capacity(given.value.len());
    for number in &given.value {
        match u16::try_from(*number) {
            Ok(cpu) if cpu < end => numbers.push(cpu),
            _ => {
                return problem(format!("names {number}"), format!("the CPUs here are 0 to {}", end.saturating_sub(1)));
            }
        }
    }
    CpuList::try_from(numbers).or_else(|error| problem(error.to_string(), "name each CPU once".to_owned()))
}

/// How many CPUs the host has, whether they are online or not.
pub(super) fn count_cpus() -> Option<u16> {
    let folders = std::fs::read_dir("/sys/devices/system/cpu").ok()?.filter_map(Result::ok);
    let is_cpu = |name: &str| name.strip_prefix("cpu").is_some_and(|number| number.parse::<u16>().is_ok());
    let count = folders.filter(|folder| folder.file_name().to_str().is_some_and(is_cpu)).count();
    u16::try_from(count).ok().filter(|&count| count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Place;

    fn given<T>(value: T) -> Given<T> {
        Given { value, origin: Origin { place: Place::CommandLine, key: "machine.x".to_owned() } }
    }

    fn host(v2: bool, v3: bool) -> Host {
        Host { max_vcpus: None, gics: Some(Gics { v2, v3 }), count_cpus: || Some(6) }
    }

    fn vcpus(count: u8) -> Option<(VcpuCount, Origin)> {
        Some((VcpuCount::try_from(count).unwrap(), given(()).origin))
    }

    #[test]
    fn newest_controller_of_the_host_is_taken() {
        assert_eq!(gic(None, vcpus(1), host(true, true)), Ok(GicVersion::V3));
        assert_eq!(gic(None, vcpus(1), host(true, false)), Ok(GicVersion::V2));
        assert_eq!(gic(Some(&given(GicVersion::V2)), vcpus(8), host(true, true)), Ok(GicVersion::V2));
    }

    #[test]
    fn controller_is_for_arm64_alone() {
        assert_eq!(gic_is_for_arm64(&given(GicVersion::V3)).is_ok(), std::env::consts::ARCH == "aarch64");
    }

    #[test]
    fn controller_that_the_host_lacks_is_refused() {
        let problem = gic(Some(&given(GicVersion::V3)), vcpus(1), host(true, false)).unwrap_err();
        assert!(problem.what.starts_with("is \"v3\", which this host"), "{problem}");
    }

    #[test]
    fn more_than_eight_vcpus_on_a_gicv2_are_refused() {
        let problem = gic(None, vcpus(9), host(true, false)).unwrap_err();
        assert_eq!(problem.right, "a GICv2 serves at most 8 vCPUs; more need a host with a GICv3");
        let problem = gic(Some(&given(GicVersion::V2)), vcpus(9), host(true, true)).unwrap_err();
        assert!(problem.right.ends_with("machine.gic = \"v3\" more"), "{problem}");
        assert_eq!(gic(None, vcpus(9), host(false, true)), Ok(GicVersion::V3));
    }

    #[test]
    fn cpu_that_the_host_lacks_or_that_is_named_twice_is_refused() {
        assert_eq!(cpus(Some(&given(vec![4, 5])), host(true, true)).unwrap().get(), [4, 5]);
        assert!(cpus(None, host(true, true)).unwrap().get().is_empty());
        for (list, what) in [(vec![6], "names 6"), (vec![-1], "names -1"), (vec![], "is empty")] {
            assert_eq!(cpus(Some(&given(list)), host(true, true)).unwrap_err().what, what);
        }
        let problem = cpus(Some(&given(vec![1, 1])), host(true, true)).unwrap_err();
        assert_eq!(problem.right, "name each CPU once");
    }
}
