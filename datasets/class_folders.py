"""Published sets that are one folder a class: CPN X-ray, Kvasir v1 and v2, and two that were never published.

None has patient ids or an official split: images are split 60/10/30, stratified, and files that are the same to the
byte stay together. Frames of one video or patient cannot be told apart and lie on both sides.
"""

from __future__ import annotations

import re

from bench.datasets import _splits
from bench.datasets._archives import Tree
from bench.datasets._named import Images, NamedSet, labels_of, once, twins

_EIGHT = (
    "dyed-lifted-polyps", "dyed-resection-margins", "esophagitis", "normal-cecum", "normal-pylorus", "normal-z-line",
    "polyps", "ulcerative-colitis",
)  # fmt: skip


class ClassFolders(NamedSet):
    """Adapter of a set whose images lie in folders named after the classes."""

    def images(self, tree: Tree) -> Images:
        """Take each image's class from the nearest folder above it that is named like one."""
        known = {_letters(name): name for name in self.info.classes}
        found = []
        for member in once(tree.members):
            parts = member.path.split("/")
            for at in range(len(parts) - 2, -1, -1):
                if kind := known.get(_letters(parts[at])):
                    found.append((kind, "/".join([kind, *parts[at + 1 :]]), member))
                    break
        found.sort(key=lambda image: image[1])
        present = {kind for kind, _, _ in found}
        if lacking := [name for name in self.info.classes if name not in present]:
            raise ValueError(
                f"{self.name}: {tree.place} holds no image of class {_splits.listed(lacking)}; expected {self.archive}"
            )
        members = tuple(member for _, _, member in found)
        labels = labels_of([kind for kind, _, _ in found], self.info.classes)
        return Images(members, tuple(name for _, name, _ in found), labels, twins(members))


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", name.lower())


class CpnXray(ClassFolders):
    """COVID, normal and pneumonia chest X-rays (Shastri et al., Mendeley Data dvntn9yhd2)."""

    archive = (
        "dvntn9yhd2-1.zip from https://data.mendeley.com/datasets/dvntn9yhd2/1, as it is (an archive in it) or "
        "unpacked (COVID, NORMAL, PNEUMONIA)"
    )
    per_class = {"COVID": 1_626, "NORMAL": 1_802, "PNEUMONIA": 1_800}  # noqa: RUF012
    author = (3_140, 521, 1_567)
    lookalikes = {4_575: "Mendeley jctsfj2sfn", 6_939: "Mendeley mxc6vb7svm (also on Kaggle)"}  # noqa: RUF012


class KvasirV1(ClassFolders):
    """Endoscopy, 500 images a class: the version that MedMamba used (Pogorelov et al., MMSys, 2017)."""

    archive = "kvasir-dataset.zip from https://datasets.simula.no/kvasir, as it is or unpacked (one folder a class)"
    per_class = dict.fromkeys(_EIGHT, 500)
    author = (2_408, 392, 1_200)
    lookalikes = {8_000: "kvasir_v2"}  # noqa: RUF012


class KvasirV2(ClassFolders):
    """Endoscopy, 1,000 images a class."""

    archive = "kvasir-dataset-v2.zip from https://datasets.simula.no/kvasir, as it is or unpacked (one folder a class)"
    per_class = dict.fromkeys(_EIGHT, 1_000)
    lookalikes = {4_000: "kvasir_v1"}  # noqa: RUF012


_NOBODY = "there is no public archive of it"
_ASK = "ask the authors of MedMamba (https://github.com/YubiaoYue/MedMamba, issues 25, 37 and 47: others did)"


class Otoscopy2024(ClassFolders):
    """Ear endoscopy of nine classes, as used by MedMamba; not public."""

    per_class = {  # noqa: RUF012
        "cholesteatoma": 548,
        "chronic suppurative otitis media": 4_021,
        "external ear canal bleeding": 451,
        "impacted cerumen": 6_058,
        "normal": 4_685,
        "otomycosis": 2_507,
        "secretory otitis media": 2_720,
        "tympanic membrane calcification": 1_152,
        "acute otitis media": 439,
    }
    archive = (
        f"one folder a class ({', '.join(per_class)}); {_NOBODY}: {_ASK} or of Zeng et al. "
        "(doi:10.1038/s41598-021-90345-w)"
    )


class CervicalUS(ClassFolders):
    """Ultrasound of cervical lymph nodes, as used by MedMamba; a private set of one hospital."""

    archive = (
        f"one folder a class (normal, benign, primary, metastatic); {_NOBODY}, it belongs to the Second Affiliated "
        f"Hospital of Guangzhou Medical University: {_ASK}"
    )
    per_class = {"normal": 1_217, "benign": 601, "primary": 236, "metastatic": 1_338}  # noqa: RUF012
