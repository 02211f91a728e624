"""Fetal-Planes-DB: maternal-fetal ultrasound planes (Burgos-Artizzu et al., Scientific Reports 10:10200, 2020).

The table is separated by semicolons, some names in it and the header ``Train `` end in blanks, and images are named
without their suffix. Its official split is by patient; val is taken from its training patients.
"""

from __future__ import annotations

import numpy as np

from bench.datasets._archives import Tree
from bench.datasets._named import Images, NamedSet, by_name, labels_of, table_named
from bench.datasets.csv_table import read_table


class FetalPlanes(NamedSet):
    """Adapter."""

    archive = (
        "FETAL_PLANES_ZENODO.zip from https://zenodo.org/records/3904280, as it is or unpacked "
        "(FETAL_PLANES_DB_data.csv and Images/*.png)"
    )
    total = 12_400
    per_class = {  # noqa: RUF012
        "Fetal abdomen": 711,
        "Fetal brain": 3_092,
        "Fetal femur": 1_040,
        "Fetal thorax": 1_718,
        "Maternal cervix": 1_626,
        "Other": 4_213,
    }
    author = (7_446, 1_237, 3_717)

    def images(self, tree: Tree) -> Images:
        """Join the table with the images."""
        member = table_named(tree, "FETAL_PLANES_DB_data.csv", self.archive)
        table = read_table(member.read(), member.path)
        names = [f"{name}.png" for name in table.column("Image_name", "of the images")]
        kinds = table.column("Plane", "of the labels")
        patients = table.column("Patient_num", "of the patients")
        train = table.column("Train", "of the official split")
        table.refuse(kinds, lambda kind: kind not in self.info.classes, "Plane is none of the six classes")
        table.refuse(patients, lambda patient: not patient, "no patient is named")
        table.refuse(train, lambda value: value not in ("0", "1"), "Train should be 0 or 1")
        found = by_name(tree.members)
        table.refuse(names, lambda name: name not in found, f"the image is not there; expected {self.archive}")
        return Images(
            tuple(found[name] for name in names),
            tuple(names),
            labels_of(kinds, self.info.classes),
            tuple(patients),
            np.where(np.asarray(train) == "1", 0, 2),
        )
