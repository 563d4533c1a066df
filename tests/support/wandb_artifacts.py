"""What a W&B server remembers of artifacts: the part of Backend (wandb_graphql.py) that answers for them.

An artifact is created, given its manifest and files, and committed. One of the same name and digest is not made twice:
the client is given the one that is there, and uploads nothing. Files go to the storage only where a manifest has no
reference.
"""
# ruff: noqa: N802 (a method answers the operation it is named after)

from __future__ import annotations

import json
from typing import Any

from mlkv.files import Json

MADE = "2025-01-01T00:00:00Z"


class Artifacts:
    url: str
    runs: dict[tuple[str, str, str], Any]
    artifacts: dict[str, Json]

    def versions(self, name: str) -> list[Json]:
        """The committed artifacts of a name, the oldest first."""
        return [each for each in self.artifacts.values() if each["name"] == name and each["state"] == "COMMITTED"]

    def manifest(self, artifact: Json) -> Json:
        """What is in it: name → digest, size and, of a reference, `ref`."""
        contents: Json = json.loads(artifact["files"]["manifest.json"])["contents"]
        return contents

    def keep_artifact_file(self, id: str, name: str, content: bytes) -> None:
        self.artifacts[id]["files"][name] = content

    def _CreateArtifact(self, variables: Json) -> Json:
        wanted = variables["input"]
        name, digest = wanted["artifactCollectionName"], wanted["digest"]
        project = (wanted["entityName"], wanted["projectName"])
        same = [
            each
            for each in self.artifacts.values()
            if (each["name"], each["digest"], each["project"]) == (name, digest, project)
        ]
        committed = [each for each in same if each["state"] == "COMMITTED"]
        artifact = (
            committed[0] if committed else self._new_artifact(name, digest, project, wanted["artifactTypeName"], wanted)
        )
        run = self.runs.get((*project, wanted.get("runName") or ""))
        if run and artifact["id"] not in run.artifacts:
            run.artifacts.append(artifact["id"])
        latest = self.versions(name)[-1:]
        sequence = {
            "id": f"sequence-{name}",
            "latestArtifact": {"id": latest[0]["id"], "versionIndex": latest[0]["version"]} if latest else None,
        }
        shown = {key: artifact[key] for key in ("id", "digest", "state")}
        return {"createArtifact": {"artifact": {**shown, "artifactSequence": sequence}}}

    def _new_artifact(self, name: str, digest: str, project: tuple[str, str], type: str, wanted: Json) -> Json:
        id = f"artifact-{len(self.artifacts)}"
        self.artifacts[id] = {
            "id": id,
            "name": name,
            "type": type,
            "digest": digest,
            "project": project,
            "version": len(self.versions(name)),
            "metadata": wanted.get("metadata"),
            "description": wanted.get("description"),
            "files": {},
            "state": "PENDING",
        }
        return self.artifacts[id]

    def _XXHashDigestsEnabled(self, variables: Json) -> Json:
        return {"entity": {"xxhashDigestsEnabled": False}}

    def _OrganizationCoreWeaveOrganizationID(self, variables: Json) -> Json:
        return {"entity": {"organization": None}}

    def _FetchArtifactDigestAlgorithm(self, variables: Json) -> Json:
        return {"project": {"artifactType": None}}

    def _ArtifactType(self, variables: Json) -> Json:
        return {"project": {"artifact": None}}

    def _CreateArtifactFiles(self, variables: Json) -> Json:
        def node(file: Json) -> Json:
            url = self._artifact_url(file["artifactID"], file["name"])
            return {
                "node": {
                    "storagePath": file["name"],
                    "uploadUrl": url,
                    "uploadHeaders": [],
                    "uploadMultipartUrls": None,
                    "artifact": {"id": file["artifactID"]},
                }
            }

        edges = [node(file) for file in variables["input"]["artifactFiles"]]
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _artifact_url(self, id: str, name: str) -> str:
        return f"{self.url}/storage/-/{id}/artifacts/{name}"

    def _CreateArtifactManifest(self, variables: Json) -> Json:
        id = variables["artifactID"]
        return {"createArtifactManifest": {"artifactManifest": self._manifest_of(id)}}

    def _UpdateArtifactManifest(self, variables: Json) -> Json:
        id = variables["artifactManifestID"].removeprefix("manifest-")
        return {"updateArtifactManifest": {"artifactManifest": self._manifest_of(id)}}

    def _manifest_of(self, id: str) -> Json:
        file = {"id": "file", "uploadUrl": self._artifact_url(id, "manifest.json"), "uploadHeaders": []}
        return {"id": f"manifest-{id}", "file": file}

    def _CommitArtifact(self, variables: Json) -> Json:
        artifact = self.artifacts[variables["artifactID"]]
        artifact["state"] = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": artifact["digest"]}}}

    # Reading and using
    def _ArtifactByID(self, variables: Json) -> Json:
        return {"artifact": self._artifact_node(self.artifacts[variables["id"]])}

    def _ArtifactMembershipByName(self, variables: Json) -> Json:
        name, _, alias = variables["name"].partition(":")
        project = (variables["entity"], variables["project"])
        found = [each for each in self.versions(name) if each["project"] == project]
        wanted = [each for each in found if alias in ("latest", f"v{each['version']}")][-1:]
        if not wanted:
            return {"project": {"artifactCollectionMembership": None}}
        artifact = wanted[0]
        membership = {
            "__typename": "ArtifactCollectionMembership",
            "id": f"membership-{artifact['id']}",
            "versionIndex": artifact["version"],
            "createdAt": MADE,
            "aliases": [],
            "artifactCollection": self._sequence(artifact),
            "artifact": self._artifact_node(artifact),
        }
        return {"project": {"artifactCollectionMembership": membership}}

    def _sequence(self, artifact: Json) -> Json:
        entity, name = artifact["project"]
        project = {"id": f"project-{name}", "internalId": "1", "name": name, "entity": {"name": entity}}
        return {"__typename": "ArtifactSequence", "name": artifact["name"], "project": project}

    def _artifact_node(self, artifact: Json) -> Json:
        return {
            "__typename": "Artifact",
            "id": artifact["id"],
            "artifactSequence": self._sequence(artifact),
            "versionIndex": artifact["version"],
            "artifactType": {"name": artifact["type"]},
            "description": artifact["description"],
            "metadata": artifact["metadata"],
            "ttlDurationSeconds": -2,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": None,
            "state": artifact["state"],
            "size": 0,
            "digest": artifact["digest"],
            "commitHash": "",
            "fileCount": len(artifact["files"]),
            "createdAt": MADE,
            "updatedAt": None,
            "aliases": [],
        }

    def _UseArtifact(self, variables: Json) -> Json:
        run = self.runs[variables["entityName"], variables["projectName"], variables["runName"]]
        if variables["artifactID"] not in run.inputs:
            run.inputs.append(variables["artifactID"])
        return {"useArtifact": {"artifact": {"id": variables["artifactID"]}}}
