//! Validators agree: fast, idle, with some of them gone, and after everybody was killed.

use super::*;

#[test]
fn four_validators_agree_on_transactions_from_each_of_them() {
    let market = Market::start("agree-four", 4, fast(60_000));
    for round in 0..3_u8 {
        for index in 0..4 {
            let outcome = market.submit(index, offer(round * 4 + index as u8 + 1));
            assert!(outcome.height > 0);
        }
    }
    let height = market.height(0);
    market.wait_height(height);
    market.assert_agreed();
    for node in market.running() {
        assert_eq!(node.view().candidates().count(), 12);
        let certificate = node.certificate(height).unwrap();
        assert!(certificate.signatures.len() >= 3);
    }
}
