"""Print as JSON what cellxgene's own server sends to its page for the h5ad file of the first
argument. It runs in an environment with cellxgene, so it imports nothing of the tests.
"""

import json
import sys

from server.app.app import Server
from server.common.config.app_config import AppConfig
from server.common.fbs.matrix import decode_matrix_fbs

config = AppConfig()
config.update_server_config(single_dataset__datapath=sys.argv[1], app__flask_secret_key="secret")
config.update_dataset_config(user_annotations__enable=False)
config.complete_config()
client = Server(config).app.test_client()


def get(path, kind="application/octet-stream"):
    answer = client.get(f"/api/v0.2/{path}", headers={"Accept": kind})
    assert answer.status_code == 200, (path, answer.status_code, answer.get_data(as_text=True))
    return answer


def table(path):
    return decode_matrix_fbs(get(path).data)


schema = get("schema", "application/json").json["schema"]
annotations = schema["annotations"]
obs = {column["name"]: column["type"] for column in annotations["obs"]["columns"]}
maps = [layout["name"] for layout in schema["layout"]["obs"]]
index = annotations["var"]["index"]
genes = table("annotations/var")[index].tolist()
gene = table(f"data/var?var:{index}={genes[-1]}")
found = {
    "obs": {name: table(f"annotations/obs?annotation-name={name}")[name].tolist() for name in obs},
    "types": obs,
    "names": annotations["obs"]["index"],
    "maps": {
        name: table(f"layout/obs?layout-name={name}").notna().all(1).tolist() for name in maps
    },
    "genes": genes,
    "gene": gene.iloc[:, 0].tolist(),
}
sys.stdout.write(json.dumps(found))
