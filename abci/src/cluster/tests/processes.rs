//! Nodes in processes of their own: kill -9 and SIGSTOP, as an operator's machine does it.
//!
//! The children are this test binary again, told by the environment to be a node.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use super::*;

const DIR: &str = "RINGSEED_TEST_NODE_DIR";
const INDEX: &str = "RINGSEED_TEST_NODE_INDEX";
const LISTEN: &str = "RINGSEED_TEST_NODE_LISTEN";

/// No test by itself: the body of a child. Without the environment it does nothing.
#[test]
fn child_node() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let index: u8 = std::env::var(INDEX).unwrap().parse().unwrap();
    let mut config = ClusterConfig::new(dir, key(index + 1));
    config.listen = Some(std::env::var(LISTEN).unwrap().parse().unwrap());
    let node = Cluster::start(config).unwrap();
    let me = key(index + 1);
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<_> = line.split(' ').collect();
        match words.as_slice() {
            ["height"] => println!("= {}", node.status().height),
            ["count"] => println!("= {}", node.view().candidates().count()),
            ["hash", height] => {
                println!("= {:?}", node.app_hash_at(height.parse().unwrap()));
            }
            ["offer", seed, wait_ms] => {
                let body = offer(seed.parse().unwrap());
                let wait = Duration::from_millis(wait_ms.parse().unwrap());
                println!("= {}", submit(&node, &me, &body, wait));
            }
            other => panic!("{other:?}"),
        }
    }
}

/// "true", or why not. A node that was just restarted may lack a block with its own transaction: it
/// then takes a nonce twice, is told, and takes the next.
fn submit(node: &Cluster, me: &SigningKey, body: &TxBody, wait: Duration) -> String {
    let until = Instant::now() + wait;
    loop {
        let nonce = node.view().nonce(&me.public()) + 1;
        let hash = node.genesis().hash();
        let tx = Tx::sign(me, &hash, nonce, 5_000, body.clone()).unwrap().to_bytes();
        match node.submit(tx, until.saturating_duration_since(Instant::now())) {
            Ok(TxOutcome { code: TxCode::Ok, .. }) => return "true".into(),
            Ok(TxOutcome { code: TxCode::NonceUsed, .. })
            | Err(SubmitError::Refused { code: TxCode::NonceUsed, .. })
                if Instant::now() < until =>
            {
                std::thread::sleep(Duration::from_millis(20));
            }
            other => return format!("{other:?}"),
        }
    }
}

struct Process {
    child: Child,
    stdin: ChildStdin,
    answers: Receiver<String>,
}

impl Process {
    fn start(market: &Market, index: usize) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "cluster::tests::processes::child_node", "--nocapture"])
            .env(DIR, market.node_dir(index))
            .env(INDEX, index.to_string())
            .env(LISTEN, market.addrs[index].to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (tell, answers) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // The harness prints its own words in front of the first answer.
                if let Some(at) = line.find("= ") {
                    let _ = tell.send(line[at + 2..].to_owned());
                }
            }
        });
        Self { child, stdin, answers }
    }

    fn tell(&mut self, line: &str) {
        let _ = writeln!(self.stdin, "{line}");
    }

    fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.answers.recv_timeout(2 * PATIENCE).expect("the child answers")
    }

    fn number(&mut self, line: &str) -> u64 {
        self.ask(line).parse().unwrap()
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start_all(market: &Market) -> Vec<Process> {
    (0..market.addrs.len()).map(|index| Process::start(market, index)).collect()
}

/// A market whose folders hold the genesis, as `start` leaves them.
fn prepared(name: &str) -> Market {
    let market = Market::prepare(name, 4, fast(60_000));
    for index in 0..4 {
        let dir = market.node_dir(index).join("consensus");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("genesis.toml"), market.genesis.to_text()).unwrap();
    }
    market
}

fn wait_count(processes: &mut [Process], count: u64) {
    let start = Instant::now();
    while processes.iter_mut().any(|process| process.number("count") < count) {
        assert!(start.elapsed() < PATIENCE, "not {count} candidates on all");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn two_of_four_frozen_stop_the_market_and_released_it_goes_on() {
    let market = prepared("process-frozen");
    let mut processes = start_all(&market);
    assert_eq!(processes[0].ask("offer 1 15000"), "true");
    wait_count(&mut processes, 1);
    let (awake, frozen) = processes.split_at_mut(2);
    frozen.iter().for_each(|process| process.signal("STOP"));
    let height = awake[0].number("height");
    let stuck = awake[0].ask("offer 2 2000");
    assert!(stuck.contains("Timeout"), "no quorum: {stuck}");
    assert_eq!(awake[0].number("height"), height);
    assert_eq!(awake[0].number("count"), 1, "reads go on");
    frozen.iter().for_each(|process| process.signal("CONT"));
    wait_count(&mut processes, 2);
    // One frozen proposer of four is no stop.
    processes[3].signal("STOP");
    for seed in 3..9 {
        let at = seed % 3;
        assert_eq!(processes[at].ask(&format!("offer {seed} 15000")), "true");
    }
    processes[3].signal("CONT");
    wait_count(&mut processes, 8);
}

#[test]
fn all_four_killed_and_restarted_go_on() {
    let market = prepared("process-killed");
    let mut processes = start_all(&market);
    for round in 0..4_u64 {
        let at = (round % 4) as usize;
        assert_eq!(processes[at].ask(&format!("offer {} 15000", 10 * round + 1)), "true");
        // More is on its way when the power goes.
        (0..4).for_each(|index| {
            let seed = 10 * round + 2 + index as u64;
            processes[index].tell(&format!("offer {seed} 0"));
        });
        std::thread::sleep(Duration::from_millis(7 * round));
        processes.iter_mut().for_each(Process::kill);
        processes = start_all(&market);
    }
    assert_eq!(processes[1].ask("offer 200 15000"), "true");
    let count = processes[1].number("count");
    assert!(count >= 5, "{count}");
    wait_count(&mut processes, count);
    let height = processes.iter_mut().map(|process| process.number("height")).min().unwrap();
    let hashes: Vec<_> =
        processes.iter_mut().map(|process| process.ask(&format!("hash {height}"))).collect();
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
}
