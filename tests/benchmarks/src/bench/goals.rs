//! What the operator has to reach beside the Go peer of the same run.

use super::results::{Benchmark, Loading, Size};
use super::side::Side;

/// What a value may be at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bound {
    /// So many times what the Go peer takes.
    TimesGo(f64),
    /// What the Go peer takes, divided by this.
    GoOver(f64),
    /// Whatever the Go peer takes.
    AtMost(f64),
}

/// A goal for one side of the operator.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Goal {
    pub(crate) benchmark: Benchmark,
    pub(crate) side: Side,
    pub(crate) bound: Bound,
}

/// A goal beside what was measured.
#[derive(Clone, Debug)]
pub(crate) struct Compared {
    pub(crate) goal: Goal,
    pub(crate) own: f64,
    pub(crate) go: Option<f64>,
    pub(crate) is_met: bool,
}

const fn goal(benchmark: Benchmark, side: Side, bound: Bound) -> Goal {
    Goal {
        benchmark,
        side,
        bound,
    }
}

/// Per replica, in ms per second.
const REST_CPU_MAX: f64 = 1.0;
#[allow(clippy::cast_precision_loss)]
const REST_CPU_MAX_ALL: f64 = REST_CPU_MAX * crate::REPLICAS as f64;

const GOALS: [Goal; 20] = {
    use Benchmark as B;
    use Bound::{AtMost, GoOver, TimesGo};
    use Side::{Operator, OperatorAlone};
    [
        goal(B::CreateSeconds, Operator, TimesGo(1.0)),
        goal(B::CreateSeconds, OperatorAlone, TimesGo(1.0)),
        goal(B::CreateCpu, Operator, GoOver(2.8)),
        goal(B::CreateCpu, OperatorAlone, GoOver(3.2)),
        goal(B::CreateServerCpu, Operator, TimesGo(1.05)),
        goal(B::CreateServerCpu, OperatorAlone, TimesGo(1.05)),
        goal(B::CreateRequests, Operator, AtMost(9.0)),
        goal(B::CreateRequests, OperatorAlone, AtMost(9.0)),
        goal(B::PeakMemory, OperatorAlone, GoOver(6.2)),
        goal(B::AllMemory, Operator, GoOver(4.0)),
        goal(B::AllMemory, OperatorAlone, GoOver(6.2)),
        goal(B::RestCpu, Operator, AtMost(REST_CPU_MAX_ALL)),
        goal(B::RestCpu, OperatorAlone, AtMost(REST_CPU_MAX)),
        goal(B::ChangeCpu, Operator, GoOver(3.2)),
        goal(B::ChangeCpu, OperatorAlone, GoOver(3.2)),
        goal(B::ChangeServerCpu, Operator, TimesGo(0.9)),
        goal(B::ChangeServerCpu, OperatorAlone, TimesGo(0.9)),
        goal(B::ChangeRequests, Operator, AtMost(3.0)),
        goal(B::ChangeRequests, OperatorAlone, AtMost(3.0)),
        goal(B::TakeoverSeconds, Operator, AtMost(7.0)),
    ]
};

/// All goals that this size has figures for.
pub(crate) fn compare(size: &Size) -> Vec<Compared> {
    GOALS.iter().filter_map(|goal| one(size, goal)).collect()
}

fn one(size: &Size, goal: &Goal) -> Option<Compared> {
    let own = size.sorted(goal.side, goal.benchmark);
    // It is about the 99th percentile: of few kills, that is the slowest.
    let own = match goal.benchmark {
        Benchmark::TakeoverSeconds => own.percentile(99),
        _ => own.percentile(50),
    }?;
    let go = size.median(Side::Go, goal.benchmark);
    let most = match goal.bound {
        Bound::TimesGo(times) => go? * times,
        Bound::GoOver(divisor) => go? / divisor,
        Bound::AtMost(most) => most,
    };
    Some(Compared {
        goal: *goal,
        own,
        go,
        is_met: own <= most,
    })
}

impl Bound {
    /// As tables show it.
    pub(crate) fn text(self) -> String {
        match self {
            Self::TimesGo(1.0) => "no more".to_owned(),
            Self::TimesGo(times) => format!("at most {times} ×"),
            Self::GoOver(divisor) => format!("{divisor} × less"),
            Self::AtMost(most) => format!("at most {most}"),
        }
    }
}

impl Compared {
    /// How many times the Go peer's figure it is.
    pub(crate) fn ratio(&self) -> String {
        match self.go.map(|go| self.own / go) {
            Some(ratio) if ratio > 0.0 && ratio < 1.0 => format!("{:.1} × less", 1.0 / ratio),
            Some(ratio) if ratio.is_finite() => format!("{ratio:.2} ×"),
            _ => "-".to_owned(),
        }
    }

    pub(crate) fn verdict(&self) -> &'static str {
        if self.is_met { "met" } else { "missed" }
    }
}

/// Whether a table of this size can have a value there.
pub(crate) fn is_expected(size: &Size, side: Side, benchmark: Benchmark) -> bool {
    use Benchmark as B;
    match benchmark {
        B::CreateSeconds | B::CreateCpu | B::CreateServerCpu | B::CreateRequests => {
            size.loading == Loading::Created
        }
        B::StartSeconds | B::StartCpu => size.loading == Loading::Copied,
        B::TakeoverSeconds => side.has_successor(),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::bench::results::tests::empty;

    fn compared(benchmark: Benchmark, own: f64, go: Option<f64>) -> Compared {
        let mut size = empty(10);
        size.note(Side::Operator, benchmark, own);
        if let Some(go) = go {
            size.note(Side::Go, benchmark, go);
        }
        let mut all = compare(&size);
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    #[test]
    fn a_goal_is_met_up_to_its_bound_and_missed_beyond() {
        for (benchmark, met, missed) in [
            (Benchmark::CreateSeconds, 10.0, 10.1),
            (Benchmark::CreateCpu, 3.57, 3.58),
            (Benchmark::CreateServerCpu, 10.5, 10.6),
            (Benchmark::CreateRequests, 9.0, 9.1),
            (Benchmark::ChangeCpu, 3.12, 3.13),
        ] {
            assert!(compared(benchmark, met, Some(10.0)).is_met, "{benchmark:?}");
            let missed = compared(benchmark, missed, Some(10.0));
            assert!(!missed.is_met, "{benchmark:?}");
            assert_eq!(missed.verdict(), "missed");
        }
    }

    #[test]
    fn ratios_are_read_as_less_or_as_a_factor() {
        assert_eq!(
            compared(Benchmark::CreateCpu, 2.0, Some(5.0)).ratio(),
            "2.5 × less"
        );
        assert_eq!(
            compared(Benchmark::CreateSeconds, 5.0, Some(2.0)).ratio(),
            "2.50 ×"
        );
        assert_eq!(compared(Benchmark::TakeoverSeconds, 5.0, None).ratio(), "-");
    }

    #[test]
    fn takeover_is_compared_by_its_slowest_kill() {
        let mut size = empty(10);
        for seconds in [5.0, 5.0, 7.5] {
            size.note(Side::Operator, Benchmark::TakeoverSeconds, seconds);
        }
        assert!(!compare(&size)[0].is_met);
    }

    #[test]
    fn without_the_go_peer_nothing_is_compared_with_it() {
        let mut size = empty(10);
        size.note(Side::Operator, Benchmark::CreateSeconds, 1.0);
        assert!(compare(&size).is_empty());
    }
}
