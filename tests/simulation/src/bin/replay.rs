//! Runs one seed and prints what happens: `replay SEED`, with `OBJECTS` and `half` as for half an update.

use simulation::{Ending, Plan, simulate};

fn main() {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let number = |position: usize| given.get(position).and_then(|text| text.parse().ok());
    let plan = Plan {
        objects: number(1).unwrap_or(Plan::default().objects),
        ending: (given.len() > 2).then_some(Ending::HalfAnUpdate),
        ..Plan::default()
    };
    println!("{:?}", simulate(plan, number(0).unwrap_or(1) as u64));
}
