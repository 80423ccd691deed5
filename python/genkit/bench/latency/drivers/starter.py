"""Starts commands and times their first letter: a process that stays small, because the system counts what the parent of a
process held before it began (Linux's ru_maxrss) as held by that process."""

import os
import subprocess
import tempfile
import time


class Driver:
    def start(self, command: list, to_the_end: bool) -> dict:
        """first_s: from just before the process is made to the first byte on its standard output, None where there is none.
        peak: the most memory it held, bytes; cpu_s: processor time. It is ended after the first byte unless `to_the_end`."""
        with tempfile.TemporaryFile() as errors:
            begin = time.perf_counter()
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
            output = process.stdout.fileno()
            first_s = time.perf_counter() - begin if os.read(output, 1) else None
            if first_s is not None and not to_the_end:
                process.kill()
            while os.read(output, 1 << 16):
                pass
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            process.stdout.close()
            errors.seek(0)
            said = errors.read()[-2000:].decode("utf-8", "replace").strip().rpartition("\n")[2]
        # Linux counts in kilobytes, macOS in bytes.
        peak = usage.ru_maxrss * (1 if os.uname().sysname == "Darwin" else 1024)
        return {"first_s": first_s, "peak": peak, "cpu_s": usage.ru_utime + usage.ru_stime,
                "code": process.returncode, "said": said}
