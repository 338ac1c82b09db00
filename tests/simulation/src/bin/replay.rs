//! Runs one seed and prints what happens.

fn main() {
    let seed = std::env::args()
        .nth(1)
        .and_then(|text| text.parse().ok())
        .unwrap_or(1);
    println!(
        "{:?}",
        simulation::simulate(simulation::Plan::default(), seed)
    );
}
