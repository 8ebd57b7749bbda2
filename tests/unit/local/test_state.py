import json
import socket
from pathlib import Path

import pytest

from local.errors import FolderInUse, LocalError, PortTaken
from local.ports import GRPC_OFFSET, PORT_NAMES, SEAWEEDFS_PORTS
from local.state import STATE_FILE, State, write_privately


def _ignore(_: str) -> None:
    return


def test_state_file_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    with State.open(tmp_path / "data"):
        assert (tmp_path / "data" / STATE_FILE).stat().st_mode & 0o777 == 0o600


def test_ports_and_secrets_are_the_same_at_the_second_start(tmp_path: Path) -> None:
    with State.open(tmp_path) as first:
        first.settle_ports(_ignore)
        first.api_key = "calo_x"
        first.save()
        before = (dict(first.ports), dict(first.secrets))
    with State.open(tmp_path) as second:
        second.settle_ports(_ignore)
        assert (second.ports, second.secrets) == before
        assert second.api_key == "calo_x"


def test_two_data_folders_have_different_secrets(tmp_path: Path) -> None:
    with State.open(tmp_path / "a") as one, State.open(tmp_path / "b") as other:
        assert not set(one.secrets.values()) & set(other.secrets.values())
        assert len(set(one.secrets.values())) == len(one.secrets)


def test_all_ports_differ_and_leave_room_for_grpc(tmp_path: Path) -> None:
    with State.open(tmp_path) as state:
        grpc = [state.ports[name] + GRPC_OFFSET for name in SEAWEEDFS_PORTS]
        numbers = [*state.ports.values(), *grpc]
        assert set(state.ports) == set(PORT_NAMES)
        assert len(set(numbers)) == len(numbers)
        assert max(numbers) < 65_536


def test_second_up_on_one_folder_is_refused_and_names_the_first(tmp_path: Path) -> None:
    message = r"in use by another .calotype up. \(process \d+\)"
    with State.open(tmp_path), pytest.raises(FolderInUse, match=message):
        State.open(tmp_path).__enter__()
    with State.open(tmp_path):
        pass


def test_port_taken_meanwhile_is_replaced_and_announced(tmp_path: Path) -> None:
    said: list[str] = []
    with State.open(tmp_path) as state:
        old = dict(state.ports)
        with socket.create_server(("127.0.0.1", old["valkey"])):
            state.settle_ports(said.append)
        assert state.ports["valkey"] != old["valkey"]
        assert {name: state.ports[name] for name in old if name != "valkey"} == {
            name: port for name, port in old.items() if name != "valkey"
        }
        before, after = old["valkey"], state.ports["valkey"]
        assert said == [f"port {before} of valkey is taken by another process: using {after} instead"]
    assert State.read(tmp_path).ports == state.ports


def test_port_whose_grpc_neighbour_is_taken_is_replaced(tmp_path: Path) -> None:
    with State.open(tmp_path) as state:
        old = state.ports["s3_master"]
        with socket.create_server(("127.0.0.1", old + GRPC_OFFSET)):
            state.settle_ports(_ignore)
        assert state.ports["s3_master"] != old


def test_port_asked_for_by_number_is_used_or_refused(tmp_path: Path) -> None:
    with State.open(tmp_path) as state, socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(PortTaken, match=f"port {port} for web is taken"):
            state.settle_ports(_ignore, {"web": port})
        listener.close()
        state.settle_ports(_ignore, {"web": port})
        assert state.ports["web"] == port


def test_broken_state_file_is_named(tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).write_text("{")
    with pytest.raises(LocalError, match=STATE_FILE):
        State.open(tmp_path).__enter__()


def test_reading_a_folder_without_calotype_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="run `calotype up` first"):
        State.read(tmp_path)


def test_private_file_is_replaced_whole_and_leaves_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "ready.json"
    write_privately(path, json.dumps({"n": 1}))
    write_privately(path, json.dumps({"n": 2}))
    assert json.loads(path.read_text()) == {"n": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["ready.json"]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("0.0.0.0", "names no machine"),
        ("gpu.example.com", "no IPv4 address"),
        ("::1", "no IPv4 address"),
        ("203.0.113.7", "no address of this machine"),
    ],
)
def test_an_address_at_which_nobody_can_listen_is_refused_by_name(
    tmp_path: Path, host: str, says: str
) -> None:
    with State.open(tmp_path) as state:
        with pytest.raises(LocalError, match=f"--host: .*{says}"):
            state.settle_host(host)
        assert state.host == "127.0.0.1"


def test_an_address_is_kept_until_another_one_is_given(tmp_path: Path) -> None:
    for given, kept in ((None, "127.0.0.1"), ("127.0.0.2", "127.0.0.2"), (None, "127.0.0.2")):
        with State.open(tmp_path) as state:
            state.settle_host(given)
            assert state.host == kept
