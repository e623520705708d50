# As on Vast's images: an interactive SSH login lands in tmux unless ~/.no_auto_tmux exists.
if [ -n "$SSH_TTY" ] && [ -z "$TMUX" ] && [ ! -e ~/.no_auto_tmux ] && [ -z "$SSH_ORIGINAL_COMMAND" ]; then
  case $- in *i*) exec tmux new-session -A -s ssh_tmux ;; esac
fi
