//! `peerage install` for real, on a machine of its own: namespaces with an empty /etc.

use std::process::Command;

/// In order: install, what follows from it, install again, take back.
const STORY: &str = r#"
export PATH="$PATH:/usr/sbin:/sbin"
mount -t tmpfs none /etc
mount -t tmpfs none /usr/local/lib
# What a version before left behind.
mkdir /etc/sysctl.d
echo "net.ipv4.ip_unprivileged_port_start = 0" > /etc/sysctl.d/60-peerage.conf
sysctl -q -p /etc/sysctl.d/60-peerage.conf
# A careful administrator's.
umask 077
"$1" install
echo "low ports from $(sysctl -n net.ipv4.ip_unprivileged_port_start)"
echo "modes $(cd /etc && stat -c %a systemd/resolved.conf.d systemd/resolved.conf.d/peerage.conf systemd/system/peerage.service | tr '\n' ' ')"
systemd-analyze verify /etc/systemd/system/peerage.service && echo "the unit is right"
systemctl enable -q peerage
echo "again:" && "$1" install && echo "nothing more"
"$1" install --uninstall
echo "left over:" $(find /etc /usr/local/lib -type f -o -type l)
"#;

#[test]
fn what_is_installed_works_is_installed_once_and_goes_without_a_trace() {
    let dir = tempfile::tempdir().expect("a directory");
    // Where the unit does not see it, as in a checkout in somebody's home.
    let program = dir.path().join("peerage");
    std::fs::copy(env!("CARGO_BIN_EXE_peerage"), &program).expect("it is there");
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--mount", "--net", "sh", "-ec", STORY, "sh"]).arg(&program);
    let output = unshare.output().expect("unshare (util-linux) is installed");
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{complained}");
    for line in [
        "wrote      /usr/local/lib/peerage/peerage\n",
        "wrote      /etc/systemd/system/peerage.service\n",
        "removed    /etc/sysctl.d/60-peerage.conf\n",
        "low ports from 1024\n",
        "modes 755 644 644 \n",
        "the unit is right\n",
        "again:\nnothing more\n",
        "removed    /etc/systemd/system/peerage.service\n",
    ] {
        assert!(said.contains(line), "{line:?} is missing:\n{said}{complained}");
    }
    assert!(said.ends_with("left over:\n"), "{said}");
}
