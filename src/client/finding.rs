//! What trackers know of files: what selectors mean, and the manifests of what they mean.
//!
//! Many files are asked about together. Every manifest is assembled from what its head promises; whoever
//! answers can only fail to answer.

use super::agent::Agent;
use super::error::{AgentError, DownloadFailure};
use crate::limits::MAX_FIND_BATCH;
use crate::manifest::{Manifest, ManifestHead};
use crate::name::{GroupName, Selector};
use crate::tracker::message::{FileCursor, FileRow, FoundFile, Matching, Reply, Request};
use crate::tracker::refusal::Refusal;

/// A file on the list of a group, by its head.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) found: FoundFile,
    pub(super) head: ManifestHead,
}

impl Agent {
    /// What each of these selectors means in a group.
    ///
    /// # Errors
    /// [`AgentError`] when none can be asked about; of each, why it means nothing.
    pub(super) async fn find_files(
        &self,
        group: &GroupName,
        files: &[Selector],
    ) -> Result<Vec<Result<Listed, AgentError>>, AgentError> {
        let request = |files| Request::FindFiles { group: group.clone(), files };
        let found = |reply| match reply {
            Reply::Found { files } => Some(files),
            _ => None,
        };
        let all = self.in_batches(files, request, found).await?;
        Ok(all.into_iter().zip(files).map(|(found, file)| listed(found, file)).collect())
    }

    /// Asks about all of `questions`, as many at a time as one request may have; each answer is about the
    /// first of those, at least one.
    async fn in_batches<Q: Clone, A>(
        &self,
        questions: &[Q],
        request: impl Fn(Vec<Q>) -> Request,
        answers: impl Fn(Reply) -> Option<Vec<A>>,
    ) -> Result<Vec<A>, AgentError> {
        let mut all = Vec::with_capacity(questions.len());
        while all.len() < questions.len() {
            let rest = &questions[all.len()..];
            let batch = rest[..rest.len().min(MAX_FIND_BATCH)].to_vec();
            let reply = self.core.line.call(&request(batch)).await?;
            let found = answers(reply).ok_or(AgentError::BadAnswer)?;
            if found.is_empty() || found.len() > rest.len() {
                return Err(AgentError::BadAnswer);
            }
            all.extend(found);
        }
        Ok(all)
    }

    /// What one selector means in a group.
    ///
    /// # Errors
    /// [`AgentError`].
    pub(super) async fn find_file(
        &self,
        group: &GroupName,
        file: &Selector,
    ) -> Result<Listed, AgentError> {
        let mut found = self.find_files(group, std::slice::from_ref(file)).await?;
        found.pop().ok_or(AgentError::BadAnswer)?
    }

    /// The files of a group whose name matches a pattern.
    ///
    /// # Errors
    /// [`AgentError`].
    pub(super) async fn matching(
        &self,
        group: &GroupName,
        pattern: &str,
        matching: Matching,
    ) -> Result<Vec<FileRow>, AgentError> {
        let request = |after: Option<FileCursor>| Request::Search {
            pattern: pattern.to_owned(),
            matching,
            group: Some(group.clone()),
            after,
        };
        self.files(request).await
    }

    /// The manifests of listed files of a group.
    ///
    /// # Errors
    /// [`AgentError`] when none can be asked for; of each, why it cannot be had.
    pub(super) async fn manifests(
        &self,
        group: &GroupName,
        files: &[&Listed],
    ) -> Result<Vec<Result<Manifest, AgentError>>, AgentError> {
        let pages_of = |file: &&Listed| {
            let content = file.head.content_id();
            (0..file.head.layout().page_count()).map(move |page| (content, page))
        };
        let wanted: Vec<_> = files.iter().flat_map(pages_of).collect();
        let request = |pages| Request::Pages { group: group.clone(), pages };
        let found = |reply| match reply {
            Reply::Pages { pages } => Some(pages),
            _ => None,
        };
        let mut pages = self.in_batches(&wanted, request, found).await?.into_iter();
        let assemble = |file: &&Listed| {
            let own = pages.by_ref().take(file.head.layout().page_count() as usize);
            let own: Vec<_> = own.collect();
            let Some(own) = own.into_iter().collect::<Option<Vec<_>>>() else {
                let file = file.found.name.to_string();
                return Err(Refusal::NoSuchFile { file, group: group.clone() }.into());
            };
            Manifest::assemble(file.head.clone(), &own).map_err(|error| AgentError::Download {
                name: file.found.name.to_string(),
                error: DownloadFailure::false_manifest(&error, &file.found.sharer),
            })
        };
        Ok(files.iter().map(assemble).collect())
    }
}

fn listed(found: Result<FoundFile, Refusal>, file: &Selector) -> Result<Listed, AgentError> {
    let found = found?;
    let head = ManifestHead::parse(&found.head).map_err(|_| AgentError::BadAnswer)?;
    match file {
        Selector::Id(id) if !id.matches(head.content_id()) => Err(AgentError::BadAnswer),
        _ => Ok(Listed { found, head }),
    }
}
