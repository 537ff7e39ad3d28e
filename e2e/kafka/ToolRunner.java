import java.io.BufferedReader;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.io.PrintStream;
import java.lang.reflect.InvocationTargetException;
import java.nio.charset.StandardCharsets;
import java.util.Base64;
import org.apache.kafka.common.utils.Exit;

/**
 * Runs the main classes of Apache Kafka's tools one after the other in one JVM: a start costs seconds, and the tests make a hundred calls.
 *
 * A request is one line, its fields separated by spaces: the main class, the time limit in milliseconds, then base64 of the standard
 * input and of each argument ("-" for an empty one). The answer is one line: the exit status, then base64 of what the tool wrote to
 * standard output and to standard error. The end of our own standard input ends the JVM, so a test run that dies leaves nothing behind.
 */
public final class ToolRunner {
    /** Unwinds a tool that called Exit.exit, as the end of its process would. */
    private static final class Stop extends Error {
        Stop() {
            super("the tool has exited", null, false, false);
        }
    }

    /** Drops everything once the tool has exited: a catch-all between Exit.exit and main may still print. */
    private static final class Capture extends OutputStream {
        private final ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        private boolean open = true;

        @Override
        public synchronized void write(int value) {
            if (open) {
                bytes.write(value);
            }
        }

        @Override
        public synchronized void write(byte[] buffer, int from, int length) {
            if (open) {
                bytes.write(buffer, from, length);
            }
        }

        synchronized void close(String message) {
            open = false;
            bytes.writeBytes(message.getBytes(StandardCharsets.UTF_8));
        }

        synchronized String encoded() {
            return encode(bytes.toByteArray());
        }
    }

    private static volatile Integer status;
    private static volatile Capture out;
    private static volatile Capture err;

    private ToolRunner() {
    }

    public static void main(String[] ignored) throws Exception {
        PrintStream answers = new PrintStream(System.out, true, StandardCharsets.UTF_8);
        BufferedReader requests = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        Exit.setExitProcedure((code, message) -> stop(code));
        Exit.setHaltProcedure((code, message) -> stop(code));
        // The hooks of a tool are for its own process; ours would collect those of every call.
        Exit.setShutdownHookAdder((name, hook) -> { });
        for (String line = requests.readLine(); line != null; line = requests.readLine()) {
            answers.println(serve(line.split(" ")));
        }
        Runtime.getRuntime().halt(0);
    }

    private static String serve(String[] fields) throws InterruptedException {
        String[] arguments = new String[fields.length - 3];
        for (int index = 0; index < arguments.length; index++) {
            arguments[index] = new String(decode(fields[index + 3]), StandardCharsets.UTF_8);
        }
        status = null;
        out = new Capture();
        err = new Capture();
        System.setIn(new ByteArrayInputStream(decode(fields[2])));
        System.setOut(new PrintStream(out, true, StandardCharsets.UTF_8));
        System.setErr(new PrintStream(err, true, StandardCharsets.UTF_8));
        Thread tool = new Thread(() -> run(fields[0], arguments), fields[0]);
        tool.start();
        tool.join(Long.parseLong(fields[1]));
        if (tool.isAlive()) {
            StringBuilder where = new StringBuilder("\nthe tool did not end within its time; it is at\n");
            for (StackTraceElement frame : tool.getStackTrace()) {
                where.append("  ").append(frame).append('\n');
            }
            err.close(where.toString());
            status = 124;
        }
        return status + " " + out.encoded() + " " + err.encoded();
    }

    private static void run(String name, String[] arguments) {
        try {
            Class.forName(name).getMethod("main", String[].class).invoke(null, (Object) arguments);
            exited(0);
        } catch (InvocationTargetException thrown) {
            if (!(thrown.getCause() instanceof Stop)) {
                thrown.getCause().printStackTrace();
            }
            exited(1);
        } catch (ReflectiveOperationException missing) {
            missing.printStackTrace();
            exited(1);
        }
    }

    private static void stop(int code) {
        exited(code);
        throw new Stop();
    }

    private static synchronized void exited(int code) {
        if (status == null) {
            status = code;
            System.out.flush();
            System.err.flush();
            out.close("");
            err.close("");
        }
    }

    private static byte[] decode(String field) {
        return field.equals("-") ? new byte[0] : Base64.getDecoder().decode(field);
    }

    private static String encode(byte[] bytes) {
        return bytes.length == 0 ? "-" : Base64.getEncoder().encodeToString(bytes);
    }
}
