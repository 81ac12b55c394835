//! What helps against a finding, in the words of how ringseed is deployed.

use clap::ValueEnum;

/// How ringseed is run here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// A unit of systemd.
    Systemd,
    /// A container of Docker or Podman.
    Docker,
    /// A pod.
    K8s,
    /// A shell of a user on a plain machine: limits.d and sysctl.d.
    #[default]
    Limits,
}

/// What would help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cure {
    /// A newer kernel.
    Kernel,
    /// `kernel.io_uring_disabled`.
    Sysctl,
    /// The three calls of io_uring in a seccomp profile.
    Seccomp,
    /// More lockable memory.
    Memlock,
    /// More open files.
    OpenFiles,
    /// A folder that exists and can be written.
    Folder,
    /// A volume on a file system with O_DIRECT.
    Volume,
    /// More space.
    Space,
    /// Another address.
    Port,
    /// More of the machine for this cgroup.
    Cgroup,
}

impl Cure {
    /// One line for the report.
    pub fn line(self, form: Form) -> &'static str {
        use Form::{Docker, K8s, Limits, Systemd};
        match (self, form) {
            (Cure::Kernel, K8s) => "nodes with Linux 6.1 or newer",
            (Cure::Kernel, _) => "Linux 6.1 or newer",
            (Cure::Sysctl, K8s) => "on the node: sysctl -w kernel.io_uring_disabled=0",
            (Cure::Sysctl, _) => "sysctl -w kernel.io_uring_disabled=0",
            (Cure::Seccomp, Systemd) => {
                "SystemCallFilter=@system-service (it holds the calls of io_uring)"
            }
            (Cure::Seccomp, Docker) => "--security-opt seccomp=ringseed-seccomp.json",
            (Cure::Seccomp, K8s) => {
                "securityContext.seccompProfile: type Localhost, localhostProfile ringseed.json"
            }
            (Cure::Seccomp, Limits) => {
                "allow io_uring_setup, io_uring_enter and io_uring_register where the filter is set"
            }
            (Cure::Memlock, Systemd) => "LimitMEMLOCK=infinity",
            (Cure::Memlock, Docker) => "--ulimit memlock=-1:-1",
            (Cure::Memlock, K8s) => "on the node: LimitMEMLOCK=infinity for the container runtime",
            (Cure::Memlock, Limits) => "ulimit -l unlimited, or a line in limits.d",
            (Cure::OpenFiles, Systemd) => "LimitNOFILE=1048576",
            (Cure::OpenFiles, Docker) => "--ulimit nofile=1048576:1048576",
            (Cure::OpenFiles, K8s) => "on the node: LimitNOFILE=1048576 for the container runtime",
            (Cure::OpenFiles, Limits) => "ulimit -Hn 1048576 as root, or a line in limits.d",
            (Cure::Folder, Systemd) => "ReadWritePaths= with this folder, owned by the unit's user",
            (Cure::Folder, Docker) => {
                "-v /srv/ringseed:/srv/ringseed, owned by the container's user"
            }
            (Cure::Folder, K8s) => "a volumeMount with this path, and fsGroup of the pod's user",
            (Cure::Folder, Limits) => "mkdir it, and chown it to the user who runs ringseed",
            (Cure::Volume, Docker) => "-v with a folder on ext4 or xfs on a local disk",
            (Cure::Volume, K8s) => "a persistent volume with ext4 or xfs on a local disk",
            (Cure::Volume, _) => "a folder on ext4 or xfs on a local disk",
            (Cure::Space, _) => "free space, or a larger disk",
            (Cure::Port, _) => "stop what listens there (ss -ltnp), or choose another address",
            (Cure::Cgroup, Systemd) => "MemoryMax=512M or more, CPUQuota=100% or more",
            (Cure::Cgroup, Docker) => "--memory 512m or more, --cpus 1 or more",
            (Cure::Cgroup, K8s) => "resources.limits: memory 512Mi or more, cpu 1 or more",
            (Cure::Cgroup, Limits) => "a cgroup with at least 512 MiB and one cpu",
        }
    }
}

/// Everything that a deployment of this form should have, to be pasted.
pub fn whole(form: Form) -> &'static str {
    match form {
        Form::Systemd => {
            "\
# systemctl edit ringseed.service
[Service]
LimitMEMLOCK=infinity
LimitNOFILE=1048576
SystemCallFilter=@system-service
MemoryMax=512M
"
        }
        Form::Docker => {
            "\
# ringseed-seccomp.json: the engine's default profile with one more entry in \"syscalls\":
#   {\"names\": [\"io_uring_setup\", \"io_uring_enter\", \"io_uring_register\"], \"action\": \"SCMP_ACT_ALLOW\"}
docker run --ulimit memlock=-1:-1 --ulimit nofile=1048576:1048576 \\
    --security-opt seccomp=ringseed-seccomp.json --memory 512m \\
    -v /srv/ringseed:/srv/ringseed ringseed start --dir /srv/ringseed
"
        }
        Form::K8s => {
            "\
# on every node: /var/lib/kubelet/seccomp/ringseed.json, the runtime's default profile with
#   {\"names\": [\"io_uring_setup\", \"io_uring_enter\", \"io_uring_register\"], \"action\": \"SCMP_ACT_ALLOW\"}
# and, because a pod cannot set them, LimitMEMLOCK=infinity and LimitNOFILE=1048576 for the runtime
securityContext:
  seccompProfile:
    type: Localhost
    localhostProfile: ringseed.json
resources:
  limits:
    memory: 512Mi
"
        }
        Form::Limits => {
            "\
# /etc/security/limits.d/ringseed.conf
ringseed  -  memlock  unlimited
ringseed  -  nofile   1048576
# /etc/sysctl.d/ringseed.conf
kernel.io_uring_disabled = 0
"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_cures_what_its_deployment_forbids() {
        for &form in Form::value_variants() {
            let whole = whole(form).to_lowercase();
            assert!(whole.contains("memlock") && whole.contains("nofile"), "{form:?}: {whole}");
        }
        for form in [Form::Docker, Form::K8s] {
            for call in ["io_uring_setup", "io_uring_enter", "io_uring_register"] {
                assert!(whole(form).contains(call), "{form:?} allows {call}");
            }
        }
        assert_eq!(Cure::Memlock.line(Form::Systemd), "LimitMEMLOCK=infinity");
        assert_ne!(Cure::Seccomp.line(Form::Docker), Cure::Seccomp.line(Form::K8s));
    }
}
