//! Installation: manifests, chart and image, rendered by their own tools and applied to a real API server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod chart;
mod flood;
mod image;
mod install;
mod manifests;
mod namespaced;
mod neighbours;
mod olm;
mod pages;
mod release;
mod scale;
mod support;
