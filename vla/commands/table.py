"""The table of commands: summary, help text, function and positional options of each.

This module imports nothing slow, so that `vla --help` is fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vla.common.plugins import HEADS, ROBOTS, TASKS


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        summary: One line for `vla --help`.
        function: The function that runs, as "module:name".
        description: Text for `vla COMMAND --help`.
        examples: Command lines for `vla COMMAND --help`.
        positional: The options that arguments without `=` set, in order; a leading * marks the last one if it takes all
            remaining arguments.
        verbatim: Options whose value is literal text, in addition to those of `vla.commands.arguments`.
        options_of: Another function, or a dataclass, that takes options of the command, as "module:name".
        check: Function of `vla.commands.checks` that checks the options before the command is imported.
        plugins: The options that accept names of other packages, each with its group of entry points.
    """

    summary: str
    function: str
    description: str
    examples: tuple[str, ...]
    positional: tuple[str, ...] = ()
    verbatim: tuple[str, ...] = ()
    options_of: str = ""
    check: str = ""
    plugins: Mapping[str, str] = field(default_factory=dict)


COMMANDS = {
    "record": Command(
        "record demonstrations, in simulation or on an arm, or scenes with questions",
        "vla.commands.record:record",
        "Runs the scripted expert of a task and appends its episodes to a zarr store. Noise moves the arm off the\n"
        "expert's path while the clean action is recorded, so the data shows recovery. With robot= an operator moves\n"
        "the arm with a leader arm, gamepad, keyboard or script, within the arm's limits (docs/arm.md).\n\n"
        "enter: start; end and save    backspace, r: discard and repeat    q, ctrl-C: stop the arm and quit",
        (
            "vla record task=pick episodes=400 seed=0 noise=0.03 workers=2",
            "vla record task=scenes episodes=3000",
            "vla record robot=so101 robot.port=/dev/ttyACM0 leader_port=/dev/ttyACM1 instruction='lift it' "
            "out=outputs/lift.zarr",
        ),
        verbatim=("questions",),
        options_of="vla.commands.record_robot:record_robot",
        check="record",
        plugins={"task": TASKS, "robot": ROBOTS},
    ),
    "train": Command(
        "train a policy on demonstrations and visual questions",
        "vla.training.run:train",
        "Co-trains a VLM backbone and an action head on a weighted mixture of robot episodes and question-answer\n"
        "pairs. SIGTERM or ctrl-C writes a checkpoint; the same command resumes from it.",
        (
            "vla train task=pick out=outputs/train",
            "vla train task=place mixture.vqa=0.3 out=outputs/place",
            "vla train -m plan.seed=0,1,2 'out=outputs/train-${plan.seed}'",
            "vla train -m hydra/launcher=submitit_slurm hydra.launcher.gpus_per_node=1 out=outputs/train",
            "vla train recipe=backbone out=outputs/backbone",
        ),
        options_of="vla.training.run_options:RunOptions",
        check="train",
        plugins={"task": TASKS, "head": HEADS},
    ),
    "train-tokenizer": Command(
        "train a FAST action tokenizer on demonstrations",
        "vla.commands.train_tokenizer:train_tokenizer",
        "Applies a cosine transform to action chunks, normalised as for training, and trains byte-pair encoding on\n"
        "the coefficients. Writes tokenizer.json and fast.json, and prints the tokens per held-out chunk.",
        (
            "vla train-tokenizer data=outputs/pick.zarr out=outputs/fast horizon=6",
            "vla train-tokenizer 'data={arm: a.zarr, two: b.zarr}' vocab=2048",
        ),
        check="train_tokenizer",
    ),
    "eval": Command(
        "evaluate a policy in simulation: success rate with a confidence interval",
        "vla.evaluation.evaluate:evaluate",
        "Runs a checkpoint or a scripted policy on the seeds and records the episodes. Writes eval.json, with the\n"
        "outcome of each episode and the success rate with its Wilson interval, and report.html, with videos.\n"
        "The same command resumes an interrupted run; more seeds= extend a finished one.",
        (
            "vla eval policy=outputs/train seeds=1000:1060 task=pick phrasing=heldout",
            "vla eval policy=expert seeds=0:20 task=place",
            "vla eval policy=lerobot:outputs/act/checkpoints/last/pretrained_model",
            "vla eval policy=outputs/train 'axes_report=[object,light]' swap=true out=outputs/axes",
            "vla eval policy=outputs/train 'delay=[0,0.1,0.2,0.4]' 'execution=[naive,chunked,rtc]' out=outputs/late",
            "vla eval policy=outputs/train seeds=0:200 'merge=[outputs/a,outputs/b]' out=outputs/all",
        ),
        options_of="vla.evaluation.evaluation_options:EvaluationOptions",
        check="evaluate",
        plugins={"task": TASKS},
    ),
    "deploy": Command(
        "run a policy on a robot, or on a simulated robot in wall-clock time",
        "vla.commands.deploy:deploy",
        "The arm stays within position, velocity and acceleration limits, and comes to rest at the end of every run.\n"
        "Enter, ctrl-C, SIGTERM and SIGUSR1 stop it.",
        (
            "vla deploy policy=outputs/train",
            "vla deploy robot=so101 robot.port=/dev/ttyACM0 policy=outputs/train instruction='pick up the red cube'",
            "vla deploy policy=ws://gpu-host:8000 dry_run=true",
        ),
        check="deploy",
        plugins={"robot": ROBOTS, "robot.task": TASKS},
    ),
    "serve": Command(
        "serve a policy to robots over openpi's WebSocket protocol",
        "vla.commands.serve:serve",
        "Clients are robots with openpi-client, and `vla deploy policy=ws://HOST:PORT`. /healthz and /metrics are on\n"
        "the same port. A host that other machines can reach needs a key (VLA_API_KEY or key_file). SIGTERM or ctrl-C\n"
        "answers pending requests, then ends the server.",
        (
            "vla serve policy=outputs/train",
            "vla serve policy=hub:user/model host=0.0.0.0 port=8000 key_file=secrets/key",
            "vla serve policy=outputs/aloha 'cameras={top: images/cam_high}' 'state=[state]'",
        ),
        check="serve",
    ),
    "score": Command(
        "score existing answers to a vision-language benchmark",
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
        "run a vision-language benchmark on a model, and score its answers",
        "vla.commands.benchmark:benchmark",
        "Runs the official prompts on the official files of VQAv2, TextVQA, DocVQA, ChartQA, MME, MMBench,\n"
        "SEED-Bench, MMMU, MathVista, OCRBench, CHAIR and POPE, and scores the answers as `vla score` does. The same\n"
        "command resumes an interrupted run.",
        (
            "vla benchmark pope data=data/pope policy=outputs/train",
            "vla benchmark docvqa data=data/docvqa policy=hosted:gpt-4o limit=200 out=outputs/gpt-4o",
        ),
        positional=("benchmark",),
        check="benchmark",
    ),
    "probe": Command(
        "measure a model's perception against the simulator's ground truth",
        "vla.commands.probe:probe",
        "Probes object presence, captions, counting, spatial relations, fine detail, and the modality gap between\n"
        "image and text embeddings. Prints a table with 95 % bootstrap intervals and the scores with a blank image,\n"
        "and writes a page with curves and the worst answers.",
        (
            "vla probe policy=outputs/train",
            "vla probe policy=nano 'probes=[pope-sim,counting]' n=200 json=outputs/probe.json",
            "vla probe policy=hosted:gpt-4o n=50",
        ),
        check="probe",
    ),
    "compare": Command(
        "compare two evaluations on the same scenes, with a significance test",
        "vla.commands.compare:compare",
        "Pairs the episodes by seed, and prints both rates, the interval of their difference and McNemar's exact p.\n"
        "Writes compare.json and compare.png.",
        ("vla compare outputs/eval-a outputs/eval-b",),
        positional=("a", "b"),
    ),
    "view": Command(
        "replay recorded episodes in Rerun, or show a scene of a task in MuJoCo's viewer",
        "vla.commands.view:view",
        "Shows images, joint curves, and predicted action chunks over executed actions on one timeline. Opens the\n"
        "viewer, or writes a file for the viewer on another machine. task=TASK shows a scene, or saves an image of\n"
        "its cameras.",
        (
            "vla view outputs/pick.zarr",
            "vla view outputs/eval --save outputs/rollouts.rrd",
            "vla view task=stack seed=3 --save outputs/stack.png",
        ),
        positional=("path",),
        check="view",
        plugins={"task": TASKS},
    ),
    "play": Command(
        "teleoperate a simulated arm, and record it",
        "vla.commands.play:play",
        "Uses a keyboard or gamepad in MuJoCo's viewer, or a script, which needs no screen. An episode is stored when\n"
        "its task succeeds or when the operator saves it; a discarded episode is not stored.\n\n"
        "up, down, left, right, page up, page down: move the fingertips    6, 7: close, open    8, 9: turn\n"
        "enter: save    backspace: discard and repeat    home: next scene    end: quit",
        ("vla play task=pick seed=0", "vla play task=stack device=gamepad out=outputs/by-hand.zarr"),
        check="play",
        plugins={"task": TASKS},
    ),
    "data": Command(
        "inspect, check, merge, split, filter and edit stores",
        "vla.commands.data:data",
        "info: episodes, hours, instructions, cameras, sizes, the range of each state and action component, outliers.\n"
        "check: reads every episode and verifies its checksum; exits with 2 if an episode is damaged.\n"
        "doctor: finds idle ends, offsets, delays, dropped frames, frozen or moved cameras and more, and proposes a\n"
        "command that repairs each; exits with 0 even if it finds problems (docs/data-quality.md).\n"
        "merge, split, filter: make new stores from episodes, or parts of episodes; images are not re-encoded.\n"
        "derive: makes a new store with end-effector actions, by forward kinematics (docs/end-effector.md).\n"
        "delete, edit, rename, migrate: change a store in place, atomically; readers must reopen it.",
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
        check="data",
    ),
    "convert": Command(
        "convert episodes and questions from other formats, and episodes to LeRobot",
        "vla.commands.convert:convert",
        "Reads LeRobotDatasets (v3, v2.1, local or on the hub), HDF5 of robomimic, LIBERO and ALOHA, diffusion-policy\n"
        "zarr, RLDS, and sets of visual questions. Writes a zarr store or a LeRobotDataset v3, and verifies it by\n"
        "reading it back. The same command continues after the last episode of a store.",
        (
            "vla convert lerobot/svla_so101_pickplace outputs/pickplace.zarr codec=webp",
            "vla convert outputs/pick.zarr outputs/pick-lerobot",
            "vla convert data/bridge_dataset outputs/bridge.zarr episodes=0:100",
        ),
        positional=("src", "dst"),
    ),
    "models": Command(
        "list the vision-language models, and how to load each",
        "vla.commands.models:models",
        "Prints for every family its role (backbone, dual encoder, hosted), connector, released checkpoint, the test\n"
        "that verifies it, and what finetuning freezes. family=NAME shows one in detail, with its configuration.",
        ("vla models", "vla models qwen2.5-vl"),
        positional=("family",),
    ),
    "push": Command(
        "upload a checkpoint to the hub, with its model card",
        "vla.commands.push:push",
        "Uploads weights, configuration, processor, tokenizer, LeRobot's files and a model card, but not the state\n"
        "for resuming training. dry_run=true prints the files and the card, and uploads nothing.",
        ("vla push policy=outputs/train repo=user/name dry_run=true", "vla push repo=user/name license=apache-2.0"),
        check="push",
    ),
    "export-lerobot": Command(
        "write a fine-tuned pi0, SmolVLA or EVO1 for LeRobot's commands",
        "vla.commands.export_lerobot:export_lerobot",
        "Writes configuration, weights, normalisation and processors in LeRobot's layout. The model must have been\n"
        "trained from a released policy of LeRobot (vla train backbone=lerobot/pi05_base), with its own head.",
        ("vla export-lerobot policy=outputs/train out=outputs/lerobot-policy",),
        check="push",
    ),
    "robot": Command(
        "show an arm's servos, clear their errors, disable torque, move it home",
        "vla.commands.robot:robot",
        "status: position, load, temperature, voltage, error flags and torque of each servo; exits with 1 if one\n"
        "reports a problem. clear: clears error flags such as overload; nothing moves. disable_torque: the arm\n"
        "falls. home: moves to a pose slowly, within the limits of `vla deploy`, and holds it; enter or ctrl-C stops\n"
        "it.",
        (
            "vla robot status robot.port=/dev/ttyACM0",
            "vla robot clear robot.port=/dev/ttyACM0",
            "vla robot disable_torque robot.port=/dev/ttyACM0",
            "vla robot home robot.port=/dev/ttyACM0 'pose={shoulder_pan: 0.5, gripper: 0.2}'",
        ),
        positional=("action",),
        check="robot",
        plugins={"robot": ROBOTS},
    ),
    "so101-sim": Command(
        "emulate a SO-101 on a serial port, for LeRobot's driver and tools",
        "vla.commands.so101_sim:so101_sim",
        "Emulates six servos for LeRobot's SO101Follower, in real time, and cameras for its zmq reader. Prints the\n"
        "arguments for LeRobot's tools. Lines typed while it runs inject faults: mute 3, overload 2, corrupt 0.1,\n"
        "drop 0.1, slow 0.02, unplug, plug, heal.",
        ("vla so101-sim", "vla so101-sim task=stack seed=3 out=outputs/arm image_size=256 camera_port=5600"),
        check="so101_sim",
        plugins={"task": TASKS},
    ),
    "doctor": Command(
        "check this machine, and how to install what is missing",
        "vla.commands.doctor:doctor",
        "Checks Python, packages, rendering, GPU, serial ports, cameras, disk and display.\n"
        "Exits with 1 if the demo cannot run.",
        ("vla doctor",),
    ),
    "completion": Command(
        "print a script by which the shell completes commands and options",
        "vla.commands.completion:completion",
        "Prints a script for bash, zsh or fish. For every new shell, append its output to ~/.bashrc or ~/.zshrc, or\n"
        "write it to ~/.config/fish/completions/vla.fish.",
        ("vla completion bash", "vla completion zsh", "vla completion fish"),
        positional=("shell",),
    ),
    "bench": Command(
        "measure the speed of the time-critical parts",
        "vla.benchmarks.bench:bench",
        "Prints a table of measurements and their targets; --json writes it to a file.",
        ("vla bench env", "vla bench env --json outputs/bench-env.json"),
        positional=("name",),
    ),
    "demo": Command(
        "run the complete pipeline: record, train, evaluate, report",
        "vla.commands.demo:demo",
        "Records demonstrations, co-trains a small model on them and on visual questions, evaluates it on unseen\n"
        "seeds and writes a report. The same command resumes at the first unfinished phase.",
        ("vla demo", "vla demo out=outputs/demo-seed1 seed=1"),
        check="demo",
    ),
}
