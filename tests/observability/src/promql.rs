//! A query read into its parts, by a PromQL parser.

use std::convert::Infallible;
use std::time::Duration;

use promql_parser::label::Matchers;
use promql_parser::parser::{Expr, VectorSelector, parse, token};
use promql_parser::util::{ExprVisitor, walk_expr};

/// Replaces Grafana's `$__rate_interval`: a duration that no query uses literally.
pub const RATE_INTERVAL: Duration = Duration::from_millis(7_654_321);

/// One metric that a query uses.
#[derive(Clone, Debug)]
pub struct Selector {
    /// The metric.
    pub name: String,
    /// What its series must be like.
    pub matchers: Matchers,
    /// Over which time, when over one.
    pub range: Option<Duration>,
    /// The function right around it, when there is one.
    pub function: Option<String>,
}

/// A query that was read.
#[derive(Clone, Debug)]
pub struct Query {
    /// Its expression.
    pub expr: Expr,
    /// The metrics that it uses.
    pub selectors: Vec<Selector>,
}

impl Query {
    /// Reads a query of a dashboard or an alert.
    ///
    /// # Errors
    /// When it is no PromQL.
    pub fn read(text: &str) -> Result<Self, String> {
        let interval = format!("{}ms", RATE_INTERVAL.as_millis());
        let plain = text.replace("$__rate_interval", &interval);
        let expr = parse(&plain).map_err(|error| format!("{error} in {text}"))?;
        let mut finder = Finder::default();
        match walk_expr(&mut finder, &expr) {
            Ok(_) => {}
            Err(never) => match never {},
        }
        Ok(Self {
            expr,
            selectors: finder.selectors,
        })
    }

    /// What is compared with a limit: the left sides of its comparisons, or all of it when there are none.
    #[must_use]
    pub fn measured(&self) -> Vec<String> {
        let mut found = Vec::new();
        measured(&self.expr, &mut found);
        if found.is_empty() {
            found.push(self.expr.to_string());
        }
        found
    }
}

fn measured(expr: &Expr, found: &mut Vec<String>) {
    match expr {
        Expr::Paren(paren) => measured(&paren.expr, found),
        Expr::Binary(binary) => match binary.op.id() {
            token::T_GTR | token::T_LSS | token::T_GTE | token::T_LTE | token::T_EQLC => {
                found.push(binary.lhs.to_string());
            }
            token::T_LAND | token::T_LOR => {
                measured(&binary.lhs, found);
                measured(&binary.rhs, found);
            }
            token::T_LUNLESS => measured(&binary.lhs, found),
            _ => {}
        },
        _ => {}
    }
}

#[derive(Default)]
struct Finder {
    selectors: Vec<Selector>,
    calls: Vec<String>,
}

impl Finder {
    fn add(&mut self, selector: &VectorSelector, range: Option<Duration>) {
        self.selectors.push(Selector {
            name: selector.name.clone().unwrap_or_default(),
            matchers: selector.matchers.clone(),
            range,
            function: self.calls.last().cloned(),
        });
    }
}

impl ExprVisitor for Finder {
    type Error = Infallible;

    fn pre_visit(&mut self, expr: &Expr) -> Result<bool, Infallible> {
        match expr {
            Expr::VectorSelector(selector) => self.add(selector, None),
            Expr::MatrixSelector(matrix) => self.add(&matrix.vs, Some(matrix.range)),
            Expr::Call(call) => self.calls.push(call.func.name.to_owned()),
            _ => {}
        }
        Ok(true)
    }

    fn post_visit(&mut self, expr: &Expr) -> Result<bool, Infallible> {
        if let Expr::Call(_) = expr {
            self.calls.pop();
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    #[test]
    fn query_parser_keeps_ranges_and_functions() {
        let query =
            Query::read("sum by (le) (rate(a_bucket{x=~\"$x\"}[$__rate_interval])) / max(b)")
                .unwrap();
        let [a, b] = query.selectors.as_slice() else {
            panic!("{query:?}")
        };
        assert_eq!(
            (a.name.as_str(), a.range),
            ("a_bucket", Some(RATE_INTERVAL))
        );
        assert_eq!(a.function.as_deref(), Some("rate"));
        assert_eq!(
            (b.name.as_str(), b.range, b.function.as_deref()),
            ("b", None, None)
        );
        assert!(Query::read("sum(a").is_err());
    }
    #[test]
    fn alert_measures_the_left_side_of_its_comparisons() {
        let measured = |text: &str| Query::read(text).unwrap().measured();
        assert_eq!(measured("a > 1 and on (x) b"), ["a"]);
        assert_eq!(measured("(a / b > 1) or (c == 2)"), ["a / b", "c"]);
        assert_eq!(measured("absent(a)"), ["absent(a)"]);
    }
}
