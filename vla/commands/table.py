"""The table of commands: what each is for, which function runs, and what its arguments without a key set.

Nothing is imported here that takes time, so `vla --help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """`function` is "module:name"; `positional` names the options that arguments without `=` set, in order, the last
    with a * when it takes all that follow. `verbatim` names those whose value is text as typed, beside those of
    `vla.commands.arguments`. `check` is a function of `vla.commands.checks` that sees the options before the command
    is imported."""

    summary: str
    function: str
    description: str
    examples: tuple[str, ...]
    positional: tuple[str, ...] = ()
    verbatim: tuple[str, ...] = ()
    check: str = ""


COMMANDS = {
    "record": Command(
        "record demonstrations, in simulation or on an arm, or scenes with questions",
        "vla.commands.record:record",
        "Runs the expert of a task and appends its episodes to a zarr store. Noise moves the arm off the expert's\n"
        "path while the clean action is recorded, so the data shows how to recover. With robot= an operator moves the\n"
        "arm, by a leader, gamepad, keyboard or script; it is kept within its limits (docs/arm.md).\n\n"
        "enter: begin; end and keep    backspace, r: discard, and again    q, ctrl-C: stop the arm, and end",
        (
            "vla record task=pick episodes=400 seed=0 noise=0.03 workers=2",
            "vla record task=scenes episodes=3000",
            "vla record robot=so101 robot.port=/dev/ttyACM0 leader_port=/dev/ttyACM1 instruction='lift it' "
            "out=outputs/lift.zarr",
        ),
        verbatim=("questions",),
        check="record",
    ),
    "train": Command(
        "train a policy on demonstrations and visual questions",
        "vla.training.run:train",
        "Co-trains a VLM backbone with an action head on a weighted mixture of robot episodes and question-answer\n"
        "pairs. SIGTERM or ctrl-C writes a checkpoint; the same command goes on from it.",
        (
            "vla train task=pick out=outputs/train",
            "vla train task=place mixture.vqa=0.3 out=outputs/place",
            "vla train -m plan.seed=0,1,2 'out=outputs/train-${plan.seed}'",
            "vla train -m hydra/launcher=submitit_slurm hydra.launcher.gpus_per_node=1 out=outputs/train",
            "vla train recipe=backbone out=outputs/backbone",
        ),
        check="train",
    ),
    "train-tokenizer": Command(
        "learn a FAST action tokenizer from demonstrations",
        "vla.commands.train_tokenizer:train_tokenizer",
        "Chunks of actions, normalised as for training, become frequencies, and byte-pair encoding learns which come\n"
        "together. Writes tokenizer.json and fast.json, and says how many tokens a held-out chunk takes.",
        (
            "vla train-tokenizer data=outputs/pick.zarr out=outputs/fast horizon=6",
            "vla train-tokenizer 'data={arm: a.zarr, two: b.zarr}' vocab=2048",
        ),
        check="train_tokenizer",
    ),
    "eval": Command(
        "success rate of a policy in simulation, with its interval",
        "vla.evaluation.evaluate:evaluate",
        "Rolls a checkpoint or a scripted policy out on the given seeds, records the episodes, and writes eval.json,\n"
        "with each episode's outcome and the success rate with its Wilson interval, and report.html, with films.\n"
        "The same command again goes on where it was cut off; one with more seeds adds them.",
        (
            "vla eval policy=outputs/train seeds=1000:1060 task=pick phrasing=heldout",
            "vla eval policy=expert seeds=0:20 task=place",
            "vla eval policy=lerobot:outputs/act/checkpoints/last/pretrained_model",
            "vla eval policy=outputs/train 'axes_report=[object,light]' swap=true out=outputs/axes",
            "vla eval policy=outputs/train 'delay=[0,0.1,0.2,0.4]' 'execution=[naive,chunked,rtc]' out=outputs/late",
            "vla eval policy=outputs/train seeds=0:200 'merge=[outputs/a,outputs/b]' out=outputs/all",
        ),
        check="evaluate",
    ),
    "deploy": Command(
        "a policy on a robot, or on a simulated one in wall-clock time",
        "vla.commands.deploy:deploy",
        "The arm is kept within position, velocity and acceleration limits, and comes to rest however the run ends.\n"
        "Enter, ctrl-C, SIGTERM and SIGUSR1 stop it.",
        (
            "vla deploy policy=outputs/train",
            "vla deploy robot=so101 robot.port=/dev/ttyACM0 policy=outputs/train instruction='pick up the red cube'",
            "vla deploy policy=ws://gpu-host:8000 dry_run=true",
        ),
        check="deploy",
    ),
    "serve": Command(
        "a policy for robots elsewhere, over openpi's WebSocket protocol",
        "vla.commands.serve:serve",
        "Robots with openpi-client, and policy=ws://HOST:PORT here, ask it for chunks; /healthz and /metrics on the\n"
        "same port. A key (VLA_API_KEY or key_file) is needed for a host that others reach. SIGTERM or ctrl-C answers\n"
        "what waits, then ends.",
        (
            "vla serve policy=outputs/train",
            "vla serve policy=hub:user/model host=0.0.0.0 port=8000 key_file=secrets/key",
            "vla serve policy=outputs/aloha 'cameras={top: images/cam_high}' 'state=[state]'",
        ),
        check="serve",
    ),
    "score": Command(
        "scores of a vision-language benchmark from answers that are there already",
        "vla.commands.score:score",
        "VQAv2, TextVQA, DocVQA, ChartQA, MME, MMBench (CircularEval), SEED-Bench, MMMU, MathVista, OCRBench, CHAIR\n"
        "and POPE by the rules of their official code, with a table of categories and 95 % bootstrap intervals.",
        (
            "vla score pope --predictions answers.jsonl --references coco_pope_random.json --json pope.json",
            "vla score mme predictions=results/mme references=data/mme",
        ),
        positional=("benchmark",),
    ),
    "benchmark": Command(
        "a model's answers to a vision-language benchmark, and their scores",
        "vla.commands.benchmark:benchmark",
        "Asks the official prompts over the official files of VQAv2, TextVQA, DocVQA, ChartQA, MME, MMBench,\n"
        "SEED-Bench, MMMU, MathVista, OCRBench, CHAIR and POPE, and scores the answers as `vla score` does. A run\n"
        "that was cut off goes on.",
        (
            "vla benchmark pope data=data/pope policy=outputs/train",
            "vla benchmark docvqa data=data/docvqa policy=hosted:gpt-4o limit=200 out=outputs/gpt-4o",
        ),
        positional=("benchmark",),
        check="benchmark",
    ),
    "probe": Command(
        "what a model sees, counts and makes up, against the simulator's truth",
        "vla.commands.probe:probe",
        "Objects that are there and that are not, captions, counting, spatial relations, fine detail, and the gap\n"
        "between images and texts: a table with 95 % bootstrap intervals beside the same without a picture, and a\n"
        "page with curves and the worst answers.",
        (
            "vla probe policy=outputs/train",
            "vla probe policy=nano 'probes=[pope-sim,counting]' n=200 json=outputs/probe.json",
            "vla probe policy=hosted:gpt-4o n=50",
        ),
        check="probe",
    ),
    "compare": Command(
        "two evaluations on the same scenes: which policy is better, if one is",
        "vla.commands.compare:compare",
        "Pairs the episodes by seed, and prints both rates, the interval of their difference and McNemar's exact p.\n"
        "Writes compare.json and compare.png.",
        ("vla compare outputs/eval-a outputs/eval-b",),
        positional=("a", "b"),
    ),
    "view": Command(
        "replay recorded episodes in Rerun, or look at a scene of a task in MuJoCo's viewer",
        "vla.commands.view:view",
        "Images, joint curves and predicted chunks over executed actions on one timeline. Opens the viewer, or writes\n"
        "a file that the viewer opens elsewhere. task=TASK shows a scene, or writes a picture of its cameras.",
        (
            "vla view outputs/pick.zarr",
            "vla view outputs/eval --save outputs/rollouts.rrd",
            "vla view task=stack seed=3 --save outputs/stack.png",
        ),
        positional=("path",),
        check="view",
    ),
    "play": Command(
        "move a simulated arm by hand, and record it",
        "vla.commands.play:play",
        "Keyboard or gamepad in MuJoCo's viewer, or a script without a screen. An episode is kept when its task is\n"
        "met, or when it is saved as it is; what is discarded leaves nothing.\n\n"
        "up, down, left, right, page up, page down: move the fingertips    6, 7: close, open    8, 9: turn\n"
        "enter: save    backspace: discard, and again    home: next scene    end: quit",
        ("vla play task=pick seed=0", "vla play task=stack device=gamepad out=outputs/by-hand.zarr"),
        check="play",
    ),
    "data": Command(
        "say what a store holds and whether it is sound; merge, split and edit stores",
        "vla.commands.data:data",
        "info: episodes, hours, instructions, cameras, sizes, the range of each state and action component, outliers.\n"
        "check: reads every episode and compares it with its checksum; exits with 2 where one is damaged.\n"
        "doctor: finds idle ends, offsets, delays, lost frames, frozen or moved cameras and more, and the command\n"
        "that repairs each; exits with 0 also where it finds some (docs/data-quality.md).\n"
        "merge, split, filter: make new stores of episodes, or of parts of them; images are copied as they are coded.\n"
        "derive: a new store with end-effector actions, by the kinematics of a model (docs/end-effector.md).\n"
        "delete, edit, rename, migrate: change a store in its place, in one step: who reads it opens it again.",
        (
            "vla data info outputs/pick.zarr html=outputs/pick.html",
            "vla data check outputs/pick.zarr repair=true",
            "vla data doctor outputs/pick.zarr html=outputs/doctor.html json=outputs/doctor.json",
            "vla data merge a.zarr b.zarr c.zarr out=all.zarr",
            "vla data split all.zarr out=parts 'parts={train: 0.9, test: 0.1}'",
            "vla data filter all.zarr out=red.zarr success=true 'instruction=*red*' min_steps=20",
            "vla data filter all.zarr out=clean.zarr drop=3,7,9:12 trim=0.3 'steps={5: \"0:40,62:\"}'",
            "vla data derive all.zarr out=ee.zarr actions=ee model=so101 tool=gripperframe",
            "vla data delete all.zarr episodes=3,7,9:12",
            "vla data edit all.zarr episodes=5 'instruction=lift it, slowly' 'paraphrases=[take it, raise it]'",
            "vla data rename all.zarr embodiment=so101 'cameras={top: front}' 'instructions={old words: new words}'",
        ),
        positional=("action", "path", "*others"),
        verbatim=("episodes", "drop"),
    ),
    "convert": Command(
        "episodes and questions from other formats, and to LeRobot",
        "vla.commands.convert:convert",
        "Reads LeRobotDatasets (v3, v2.1, local or on the hub), HDF5 of robomimic, LIBERO and ALOHA, diffusion-policy\n"
        "zarr, RLDS, and sets of visual questions; writes our zarr store or a LeRobotDataset v3, and reads it back.\n"
        "The same command again goes on after the last episode of a store.",
        (
            "vla convert lerobot/svla_so101_pickplace outputs/pickplace.zarr codec=webp",
            "vla convert outputs/pick.zarr outputs/pick-lerobot",
            "vla convert data/bridge_dataset outputs/bridge.zarr episodes=0:100",
        ),
        positional=("src", "dst"),
    ),
    "models": Command(
        "the vision-language models that there are, and how to load each",
        "vla.commands.models:models",
        "Prints every family: its role (backbone, dual encoder, hosted), connector, released checkpoint, the test\n"
        "that verifies it, and what finetuning freezes. family=NAME tells more of one, with its configuration.",
        ("vla models", "vla models qwen2.5-vl"),
        positional=("family",),
    ),
    "push": Command(
        "put a checkpoint on the hub, with its model card",
        "vla.commands.push:push",
        "Uploads weights, configuration, processor and tokenizer, LeRobot's files and a card of what it drives; what\n"
        "resumes a training stays here. dry_run=true prints the files and the card, and uploads nothing.",
        ("vla push policy=outputs/train repo=user/name dry_run=true", "vla push repo=user/name license=apache-2.0"),
        check="push",
    ),
    "robot": Command(
        "look at an arm's servos, clear their errors, let it go, move it home",
        "vla.commands.robot:robot",
        "status: position, load, temperature, voltage, error flags and torque of each servo; exits with 1 where\n"
        "something is wrong. clear: clears error flags such as overload; nothing moves. relax: torque off, and the\n"
        "arm falls. home: moves to a pose slowly, within the limits of `vla deploy`, and holds; enter, ctrl-C stop it.",
        (
            "vla robot status robot.port=/dev/ttyACM0",
            "vla robot clear robot.port=/dev/ttyACM0",
            "vla robot relax robot.port=/dev/ttyACM0",
            "vla robot home robot.port=/dev/ttyACM0 'pose={shoulder_pan: 0.5, gripper: 0.2}'",
        ),
        positional=("action",),
        check="robot",
    ),
    "so101-sim": Command(
        "a simulated SO-101 on a serial port, for LeRobot's own driver and tools",
        "vla.commands.so101_sim:so101_sim",
        "Six servos as LeRobot's SO101Follower drives them, in real time, and cameras for its zmq reader. Prints the\n"
        "arguments for LeRobot's tools. Lines typed while it runs bring faults: mute 3, overload 2, corrupt 0.1,\n"
        "drop 0.1, slow 0.02, unplug, plug, heal.",
        ("vla so101-sim", "vla so101-sim task=stack seed=3 out=outputs/arm image_size=256 camera_port=5600"),
        check="so101_sim",
    ),
    "doctor": Command(
        "say what this machine lacks and how to get it",
        "vla.commands.doctor:doctor",
        "Checks Python, packages, rendering, GPU, serial ports, disk and display.\n"
        "Exits with 1 when the demo cannot run.",
        ("vla doctor",),
    ),
    "bench": Command(
        "time the parts that must be fast",
        "vla.benchmarks.bench:bench",
        "Prints a table of measurements and the targets they are held against; --json writes it to a file.",
        ("vla bench env", "vla bench env --json outputs/bench-env.json"),
        positional=("name",),
    ),
    "demo": Command(
        "the whole way: record, train, evaluate, report",
        "vla.commands.demo:demo",
        "Records demonstrations, co-trains a small model on them and on visual questions, evaluates it on unseen\n"
        "seeds and writes a report. A second run goes on at the phase that is not done.",
        ("vla demo", "vla demo out=outputs/demo-seed1 seed=1"),
        check="demo",
    ),
}
