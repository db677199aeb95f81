/** The rows of a mask in COCO's run lengths (Mask.counts). usage: java Masks.java HEIGHT WIDTH COUNTS */
public class Masks {
    // decoder
    /** Pixels row by row, 0 or 1. */
    static byte[] decode(String counts, int height, int width) {
        byte[] pixels = new byte[height * width];
        int[] lengths = new int[counts.length()];
        int runs = 0, at = 0, number = 0, shift = 0;
        for (char character : counts.toCharArray()) {
            int group = character - 48;
            number |= (group & 31) << shift;
            shift += 5;
            if ((group & 32) != 0) continue;
            if ((group & 16) != 0) number -= 1 << shift;
            if (runs > 2) number += lengths[runs - 2];
            for (int end = at + number; at < end; at++) {
                pixels[at % height * width + at / height] = (byte) (runs % 2);
            }
            lengths[runs++] = number;
            number = shift = 0;
        }
        return pixels;
    }
    // end

    public static void main(String[] arguments) {
        int height = Integer.parseInt(arguments[0]), width = Integer.parseInt(arguments[1]);
        byte[] pixels = decode(arguments[2], height, width);
        StringBuilder text = new StringBuilder();
        for (int at = 0; at < pixels.length; at++) {
            text.append(pixels[at]).append(at % width == width - 1 ? "\n" : "");
        }
        System.out.print(text);
    }
}
