//! What is generated from the repository for installing: manifests, chart templates, image, bill of materials.
//!
//! | module | generates |
//! | --- | --- |
//! | [`manifests`] | `deploy/install.yaml` and the generated part of the chart |
//! | [`image`] | an image archive (OCI layout, which `docker load` reads too), the same bytes from the same program |
//! | [`deny`] | the check of licences, unwanted crates and sources |
//! | [`elf`] | the check that a program needs no other file |
//! | [`metadata`] | what the checks and the bill know of packages |
//! | [`olm`] | the bundle for the Operator Lifecycle Manager |
//! | [`sbom`] | the bill of materials (CycloneDX) of what is linked into the program |

pub mod deny;
pub mod elf;
pub mod image;
pub mod manifests;
pub mod metadata;
pub mod olm;
pub mod sbom;
