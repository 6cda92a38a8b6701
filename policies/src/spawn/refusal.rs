//! Why the kernel refuses a jail, and what to do: the administrator's switches for user namespaces, looked at when one was
//! refused. Trusts /proc/sys; a switch that is not there forbids nothing.

use super::Step;
use nix::errno::Errno;
use std::fs;
use std::path::Path;

/// The namespaces whose number is limited (namespaces(7), /proc/sys/user).
const LIMITED: [&str; 7] = ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup"];

/// The switches of this host.
#[derive(Debug)]
pub(super) struct Switches<'a> {
    /// /proc/sys.
    folder: &'a Path,
}

impl Switches<'static> {
    /// Of this host.
    pub(super) fn of_host() -> Self {
        Self { folder: Path::new("/proc/sys") }
    }
}

impl Switches<'_> {
    fn number(&self, name: &str) -> Option<u64> {
        fs::read_to_string(self.folder.join(name)).ok()?.trim().parse().ok()
    }

    /// Why clone3 with new namespaces failed, as the end of a sentence.
    pub(super) fn refuse_clone(&self, errno: Errno) -> String {
        match errno {
            Errno::EPERM | Errno::EACCES => self.debian().or_else(|| self.apparmor()).unwrap_or_else(|| {
                ": neither kernel.unprivileged_userns_clone nor kernel.apparmor_restrict_unprivileged_userns forbids user \
                 namespaces, so a container's filter, a security module or a chroot does; start the broker outside of it"
                    .to_owned()
            }),
            Errno::ENOSPC | Errno::EUSERS => self.limits(),
            Errno::ENOSYS => ": clone3 needs Linux 5.7 or newer".to_owned(),
            _ => String::new(),
        }
    }

    /// Why a step of the jail failed, as the end of a sentence.
    pub(super) fn refuse_step(&self, step: Step, errno: Errno) -> String {
        match (step, errno) {
            (Step::PivotRoot, Errno::EINVAL) => {
                ": the broker's root is the initial ramdisk or shared with its parent, \
                which pivot_root does not leave; move to another root first"
                    .to_owned()
            }
            (Step::PrivateMounts | Step::EmptyRoot, Errno::EPERM | Errno::EACCES) => {
                self.apparmor().unwrap_or_else(|| {
                    ": a security module (AppArmor, SELinux) forbids mounts in user namespaces".to_owned()
                })
            }
            _ => String::new(),
        }
    }

    fn debian(&self) -> Option<String> {
        (self.number("kernel/unprivileged_userns_clone")? == 0).then(|| {
            ": only root may create user namespaces here, as the sysctl kernel.unprivileged_userns_clone is 0; have root \
             run `sysctl -w kernel.unprivileged_userns_clone=1`, or run the broker as root"
                .to_owned()
        })
    }

    fn apparmor(&self) -> Option<String> {
        (self.number("kernel/apparmor_restrict_unprivileged_userns")? != 0).then(|| {
            ": AppArmor keeps user namespaces from ordinary users here, as the sysctl \
             kernel.apparmor_restrict_unprivileged_userns is 1; have root load an AppArmor profile for the broker that \
             allows `userns`, or run `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`, or run the broker as root"
                .to_owned()
        })
    }

    fn limits(&self) -> String {
        let is_none = |kind: &&str| self.number(&format!("user/max_{kind}_namespaces")) == Some(0);
        match LIMITED.into_iter().find(is_none) {
            Some(kind) => format!(
                ": nobody may create {kind} namespaces here, as the sysctl user.max_{kind}_namespaces is 0; have root run \
                 `sysctl -w user.max_{kind}_namespaces=10000`"
            ),
            None => {
                ": as many namespaces exist as the sysctls user.max_*_namespaces allow, or they are nested too deep"
                    .to_owned()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said where the switches are as given.
    fn said(switches: &[(&str, &str)], say: impl Fn(&Switches<'_>) -> String) -> String {
        let folder = tempfile::tempdir().unwrap();
        for (name, value) in switches {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{value}\n")).unwrap();
        }
        say(&Switches { folder: folder.path() })
    }

    #[test]
    fn switch_that_forbids_is_named_with_its_remedy() {
        let debian = ("kernel/unprivileged_userns_clone", "0");
        let apparmor = ("kernel/apparmor_restrict_unprivileged_userns", "1");
        let clone = |switches: &[_]| said(switches, |all| all.refuse_clone(Errno::EPERM));
        assert!(clone(&[debian, apparmor]).contains("sysctl -w kernel.unprivileged_userns_clone=1"));
        assert!(clone(&[apparmor]).contains("sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"));
        let mount = said(&[apparmor], |all| all.refuse_step(Step::PrivateMounts, Errno::EACCES));
        assert!(mount.contains("kernel.apparmor_restrict_unprivileged_userns is 1"), "{mount}");
        let limit = said(&[("user/max_user_namespaces", "9"), ("user/max_net_namespaces", "0")], |all| {
            all.refuse_clone(Errno::ENOSPC)
        });
        assert!(limit.contains("user.max_net_namespaces is 0"), "{limit}");
    }

    #[test]
    fn switch_that_allows_is_not_blamed() {
        let open = [("kernel/unprivileged_userns_clone", "1"), ("kernel/apparmor_restrict_unprivileged_userns", "0")];
        for switches in [&open[..], &[]] {
            let clone = said(switches, |all| all.refuse_clone(Errno::EPERM));
            assert!(clone.contains("a container's filter"), "{clone}");
        }
        let limit = said(&[("user/max_user_namespaces", "9")], |all| all.refuse_clone(Errno::EUSERS));
        assert!(limit.contains("nested too deep"), "{limit}");
        assert_eq!(said(&[], |all| all.refuse_step(Step::Exec, Errno::EACCES)), "");
    }
}
