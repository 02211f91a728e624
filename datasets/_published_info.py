"""Information on the published sets that MedMamba was evaluated on beside MedMNIST, and of the second Kvasir.

Where the split is ours, the counts are the shares it aims at: patients and twins that stay whole move them a little.
"""

from __future__ import annotations

from bench.registry import DatasetInfo, add_builtin

_NO_SPLIT = "there is no official split: this one is ours, 60/10/30 as MedMamba's"
_NO_PATIENTS = "there are no patient ids: images of one patient may lie on both sides of the split"
_MEDMAMBA = "Yue and Li, MedMamba, arXiv 2403.03849 (2024)"
_EVAL = (0.1, 0.3)
_SIX = ("medmamba_six",)
_KVASIR = (
    "dyed-lifted-polyps", "dyed-resection-margins", "esophagitis", "normal-cecum", "normal-pylorus", "normal-z-line",
    "polyps", "ulcerative-colitis",
)  # fmt: skip


def _named(
    name: str,
    adapter: str,
    classes: tuple[str, ...],
    channels: int,
    images: int,
    modality: str,
    *,
    source: str,
    citation: str,
    licence: str,
    traps: tuple[str, ...],
    mirror_safe: bool,
    groups: tuple[str, ...] = _SIX,
    counts: tuple[int, int, int] | None = None,
    columns: tuple[str, ...] = (),
) -> None:
    val, test = (round(share * images) for share in _EVAL)
    train, val, test = counts or (images - val - test, val, test)
    add_builtin(
        DatasetInfo(
            name=name,
            task="multi-class",
            classes=classes,
            channels=channels,
            adapter=f"bench.datasets.{adapter}",
            varied=True,
            n_train=train,
            n_val=val,
            n_test=test,
            modality=modality,
            summary=f"{modality}: {len(classes)} classes, {images:,} images",
            licence=licence,
            citation=citation,
            source=source,
            groups=groups,
            mirror_safe=mirror_safe,
            traps=traps,
            columns=columns,
            variant="bench.datasets.published:variant",
        )
    )


_named(
    "pad_ufes_20",
    "published:PadUfes20",
    ("ACK", "BCC", "MEL", "NEV", "SCC", "SEK"),
    3,
    2_298,
    "skin lesion photograph",
    source="https://data.mendeley.com/datasets/zr7vgbcyr2/1",
    citation="Pacheco et al., PAD-UFES-20, Data in Brief 32:106221 (2020)",
    licence="CC BY 4.0 according to community pages",
    traps=(
        _NO_SPLIT,
        "1,373 patients have 2,298 images: published scores come from splits by image, which leak; ours is by patient",
        "melanomas are few, and about 58 % of the lesions were confirmed by biopsy",
    ),
    mirror_safe=True,
    columns=("age", "gender", "fitspatrick", "region", "biopsed"),
)
_named(
    "fetal_planes_db",
    "published:FetalPlanes",
    ("Fetal abdomen", "Fetal brain", "Fetal femur", "Fetal thorax", "Maternal cervix", "Other"),
    1,
    12_400,
    "maternal-fetal ultrasound",
    source="https://zenodo.org/records/3904280",
    citation="Burgos-Artizzu et al., Scientific Reports 10:10200 (2020)",
    licence="CC BY 4.0",
    counts=(6_416, 713, 5_271),
    traps=(
        "train and test are the official ones, by patient; val is a tenth of train, by patient",
        "MedMamba and MedViT V2 ignore the official split and split by image, which leaks 1,792 patients",
    ),
    mirror_safe=True,
    columns=("Operator", "US_Machine"),
)
_named(
    "cpn_xray",
    "published:CpnXray",
    ("COVID", "NORMAL", "PNEUMONIA"),
    1,
    5_228,
    "chest X-ray",
    source="https://data.mendeley.com/datasets/dvntn9yhd2/1",
    citation="Shastri et al., Covid19-Pneumonia-Normal Chest X-Ray Images, Mendeley Data dvntn9yhd2",
    licence="see its page",
    traps=(
        _NO_SPLIT,
        _NO_PATIENTS,
        "the classes come from different sources and ages: what tells the sources apart tells the classes apart",
        "easily mistaken for Mendeley jctsfj2sfn (4,575 images) and mxc6vb7svm (6,939)",
    ),
    mirror_safe=False,
)
for _version, _adapter, _images, _note, _group in (
    ("v1", "KvasirV1", 4_000, "kvasir_v2 is another set, twice as large", _SIX),
    ("v2", "KvasirV2", 8_000, "MedMamba and MedViT V2 used kvasir_v1, half as large", ()),
):
    _named(
        f"kvasir_{_version}",
        f"published:{_adapter}",
        _KVASIR,
        3,
        _images,
        "gastrointestinal endoscopy",
        source="https://datasets.simula.no/kvasir",
        citation="Pogorelov et al., Kvasir, ACM MMSys (2017)",
        licence="free for research and education with citation",
        traps=(
            _NO_SPLIT,
            "there are no patient ids, and neighbouring frames of one video lie on both sides of the split",
            "a green box in a corner of some images shows the endoscope's position and may give the class away",
            _note,
        ),
        mirror_safe=True,
        groups=_group,
    )
_named(
    "otoscopy2024",
    "published:Otoscopy2024",
    (
        "cholesteatoma",
        "chronic suppurative otitis media",
        "external ear canal bleeding",
        "impacted cerumen",
        "normal",
        "otomycosis",
        "secretory otitis media",
        "tympanic membrane calcification",
        "acute otitis media",
    ),
    3,
    22_581,
    "ear endoscopy",
    source="not public; the older part: https://doi.org/10.1038/s41598-021-90345-w",
    citation=f"Zeng et al., Scientific Reports (2021), doi:10.1038/s41598-021-90345-w; {_MEDMAMBA}",
    licence="not stated",
    traps=(
        "there is no public archive",
        _NO_SPLIT,
        _NO_PATIENTS,
        "in a similar set accuracy fell from 100 to 83 % once videos were not shared (arXiv 2511.04872)",
    ),
    mirror_safe=True,
)
_named(
    "cervical_us",
    "published:CervicalUS",
    ("normal", "benign", "primary", "metastatic"),
    1,
    3_392,
    "lymph-node ultrasound",
    source="not public; Second Affiliated Hospital of Guangzhou Medical University",
    citation=_MEDMAMBA,
    licence="not stated",
    traps=("there is no public archive", _NO_SPLIT, "480 patients have 3,392 images, and it is unknown which"),
    mirror_safe=True,
)
