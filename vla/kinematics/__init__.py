"""Kinematics of arms: joints, tool poses, and arithmetic on actions."""
