#!/bin/sh
exec cat built.txt
