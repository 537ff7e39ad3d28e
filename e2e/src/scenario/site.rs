//! The Kubernetes that things happen on, with the programs that drive it.

use std::{path::Path, process::Command};

use anyhow::Result;

use super::Kubectl;
use crate::cluster::{ClusterError, Selection, Target, helm};

/// A Kubernetes that runs.
#[derive(Debug)]
pub struct Site {
    selection: Selection,
    target: Target,
    kubectl: Kubectl,
}

impl Site {
    /// Starts it, or takes the one that runs already.
    ///
    /// # Errors
    /// When it does not come up; [`inability`] tells whether this machine can at all.
    pub fn up(selection: Selection, name: &str) -> Result<Self> {
        let target = Target::up(selection, name, 1)?;
        let kubectl = Kubectl::new(
            target.kubectl().get_program().into(),
            target.kubeconfig().to_owned(),
        );
        Ok(Self {
            selection,
            target,
            kubectl,
        })
    }

    /// Its kubectl.
    #[must_use]
    pub fn kubectl(&self) -> &Kubectl {
        &self.kubectl
    }

    /// A helm for it.
    ///
    /// # Errors
    /// When there is none and none can be built.
    pub fn helm(&self) -> Result<Command> {
        let mut command = Command::new(helm()?);
        command.arg("--kubeconfig").arg(self.target.kubeconfig());
        Ok(command)
    }

    /// Whether images are loaded into it from here; into a cluster of someone else they are not.
    #[must_use]
    pub fn takes_images(&self) -> bool {
        self.selection != Selection::Current
    }

    /// Loads an image from an archive.
    ///
    /// # Errors
    /// When it cannot be loaded.
    pub fn load(&self, archive: &Path) -> Result<()> {
        Ok(self.target.load_image(archive)?)
    }
}

/// Why this machine can run no pods, if that is what the error says.
#[must_use]
pub fn inability(error: &anyhow::Error) -> Option<String> {
    error
        .downcast_ref::<ClusterError>()?
        .inability()
        .map(ToString::to_string)
}
