//! libtorrent (PyPI) as seed and as leech against `seed` and `get`, for v1, v2 and hybrid torrents made by
//! either side; every byte is compared.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed};
use ringseed_tests::data::{digest_tree, write_mixed_tree};
use ringseed_tests::program::{Program, free_port, run};
use ringseed_tests::scratch::Scratch;
use ringseed_tests::skip::{Need, trial};

const OURS: &str = env!("CARGO_BIN_EXE_ringseed-under-test");
const DRIVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/interop/libtorrent_peer.py");
const DEADLINE: Duration = Duration::from_secs(60);
const KINDS: [&str; 3] = ["v1", "v2", "hybrid"];

fn main() {
    let present = Command::new("python3")
        .args(["-W", "ignore", "-c", "import libtorrent"])
        .output()
        .is_ok_and(|output| output.status.success());
    let needs = [Need {
        name: "libtorrent for Python",
        install: "python3 -m pip install libtorrent",
        present,
    }];
    let mut trials = Vec::new();
    for kind in KINDS {
        for maker in ["ours", "theirs"] {
            trials.push(trial(
                &format!("{kind}_made_by_{maker}_they_seed_we_get"),
                &needs,
                move || they_seed_we_get(kind, maker),
            ));
            trials.push(trial(
                &format!("{kind}_made_by_{maker}_we_seed_they_leech"),
                &needs,
                move || we_seed_they_leech(kind, maker),
            ));
        }
        trials.push(trial(&format!("{kind}_infohashes_agree"), &needs, move || {
            infohashes_agree(kind)
        }));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// A tree with a torrent of it: `source/tree`, `t.torrent`.
fn prepare(scratch: &Scratch, kind: &str, maker: &str) {
    write_mixed_tree(&scratch.join("source/tree"), 42);
    let tree = scratch.join("source/tree").into_os_string();
    let torrent = scratch.join("t.torrent").into_os_string();
    let logs = scratch.join("logs");
    if maker == "ours" {
        let flag = format!("--{kind}");
        let args = ["hash".into(), tree, "-o".into(), torrent, flag.into()];
        run(OURS, &args, &logs, DEADLINE).expect_code(0);
    } else {
        let args = [
            "-W".into(),
            "ignore".into(),
            DRIVER.into(),
            "create".into(),
            tree,
            torrent,
            kind.into(),
            "32768".into(),
        ];
        run("python3", &args, &logs, DEADLINE).expect_code(0);
    }
}

fn python(args: &[&Path], command: &str, logs: &Path) -> Program {
    let mut all = vec!["-W".into(), "ignore".into(), DRIVER.into(), command.into()];
    all.extend(args.iter().map(|arg| arg.as_os_str().to_owned()));
    Program::start("python3", &all, logs)
}

fn same_trees(scratch: &Scratch) -> Result<(), Failed> {
    let (source, copy) =
        (digest_tree(&scratch.join("source/tree")), digest_tree(&scratch.join("copy/tree")));
    // An empty folder is no part of a torrent; the mixed tree has none.
    if source != copy {
        return Err(format!("trees differ:\n{source:#?}\n{copy:#?}").into());
    }
    Ok(())
}

fn they_seed_we_get(kind: &str, maker: &str) -> Result<(), Failed> {
    let scratch = Scratch::new("interop");
    prepare(&scratch, kind, maker);
    let torrent = scratch.join("t.torrent");
    let mut seed = python(&[&torrent, &scratch.join("source")], "seed", &scratch.join("logs"));
    seed.wait_until("libtorrent to seed", DEADLINE, |seed| seed.stdout().contains("port "));
    let said = seed.stdout();
    let port = said.lines().find_map(|line| line.strip_prefix("port ")).expect("port line").trim();
    std::fs::create_dir_all(scratch.join("copy"))?;
    let args = [
        "get".into(),
        torrent.into_os_string(),
        "--data".into(),
        scratch.join("copy").into_os_string(),
        "--peer".into(),
        format!("127.0.0.1:{port}").into(),
    ];
    run(OURS, &args, &scratch.join("logs"), DEADLINE).expect_code(0);
    let _ = std::fs::remove_dir_all(scratch.join("copy/.ringseed"));
    same_trees(&scratch)
}

fn we_seed_they_leech(kind: &str, maker: &str) -> Result<(), Failed> {
    let scratch = Scratch::new("interop");
    prepare(&scratch, kind, maker);
    let torrent = scratch.join("t.torrent");
    let addr = format!("127.0.0.1:{}", free_port());
    let args = [
        "seed".into(),
        torrent.clone().into_os_string(),
        "--data".into(),
        scratch.join("source").into_os_string(),
        "--listen".into(),
        addr.clone().into(),
    ];
    let _seed = Program::start(OURS, &args, &scratch.join("logs"));
    let copy = scratch.join("copy");
    std::fs::create_dir_all(&copy)?;
    python(&[&torrent, &copy, Path::new(&addr)], "leech", &scratch.join("logs"))
        .wait(DEADLINE)
        .expect_code(0);
    same_trees(&scratch)
}

/// Both infohashes of a torrent made by us are those libtorrent computes for it.
fn infohashes_agree(kind: &str) -> Result<(), Failed> {
    let scratch = Scratch::new("interop");
    prepare(&scratch, kind, "ours");
    let torrent = scratch.join("t.torrent");
    let theirs = python(&[&torrent], "infohashes", &scratch.join("logs"))
        .wait(DEADLINE)
        .expect_code(0)
        .stdout;
    let metainfo = ringseed_core::metainfo::Metainfo::parse(&std::fs::read(&torrent)?)?;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let v1 = metainfo.info().info_hash_v1().map_or("-".to_owned(), |hash| hex(&hash));
    let v2 = metainfo.info().info_hash_v2().map_or("-".to_owned(), |hash| hex(&hash));
    let ours = format!("v1 {v1}\nv2 {v2}\n");
    if ours != theirs {
        return Err(format!("ours:\n{ours}theirs:\n{theirs}").into());
    }
    Ok(())
}
